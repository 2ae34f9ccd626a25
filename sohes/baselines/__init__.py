# SPDX-License-Identifier: Apache-2.0
"""Reference points for a score: three classical segmenters as lower bounds, the merge tree's oracle as upper bound, and
the human line.

`sohes.baselines.run` applies the first four to a data set, `other_annotators` is the last; `python -m sohes.evaluate
--baseline NAME` is the command.
"""
