# SPDX-License-Identifier: Apache-2.0
"""The jobs of the commands, and the three phases of training.

- `sohes.train`: `pipeline` runs `explore`, `instruct` and `correct` in order, after `checks`; `scoring` compares their
  masks with ground truth; `plan` has what the log estimates the remaining time from.
- `sohes.pretrain`: `pretrain_pipeline` runs `pretrain`.
- `sohes.segment`: `segment_photos`, with `segment_inputs` and `segment_output`.
"""
