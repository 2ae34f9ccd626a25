# SPDX-License-Identifier: Apache-2.0
"""How good a set of predicted forests is: average recall and precision as COCO counts them, and the hierarchy's
own metrics.
"""

from sohes.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]
