# SPDX-License-Identifier: Apache-2.0
"""What the training phases share: loop, optimiser, EMA, checkpoints, logging."""
