# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to masks, and the losses of matched queries."""

from sohes.losses.criterion import Criterion

__all__ = ["Criterion"]
