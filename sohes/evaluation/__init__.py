# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predicted forests: COCO's average recall and precision, and metrics of the hierarchy."""

from sohes.evaluation.coco_index import BadInput
from sohes.evaluation.evaluator import Evaluator
from sohes.evaluation.files import Plan, evaluate_files, score, score_files

__all__ = ["BadInput", "Evaluator", "Plan", "evaluate_files", "score", "score_files"]
