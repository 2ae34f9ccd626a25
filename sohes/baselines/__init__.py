# SPDX-License-Identifier: Apache-2.0
"""What a number is held against: three classical segmenters as floors, and the merge tree's oracle as a ceiling.

`sohes.baselines.run` applies them to a data set; `python -m sohes.evaluate --baseline NAME` is the command.
"""
