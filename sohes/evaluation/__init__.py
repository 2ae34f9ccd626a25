# SPDX-License-Identifier: Apache-2.0
"""How good predicted forests are: average recall and precision as COCO counts them, and the hierarchy's own metrics."""

from sohes.evaluation.coco_index import BadInput
from sohes.evaluation.evaluator import Evaluator
from sohes.evaluation.files import Plan, evaluate_files, score, score_files

__all__ = ["BadInput", "Evaluator", "Plan", "evaluate_files", "score", "score_files"]
