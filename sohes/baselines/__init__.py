# SPDX-License-Identifier: Apache-2.0
"""Reference points for a score: three classical segmenters as lower bounds, the merge tree's oracle as upper bound.

`sohes.baselines.run` applies them to a data set; `python -m sohes.evaluate --baseline NAME` is the command.
"""
