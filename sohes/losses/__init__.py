# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to target masks, and training losses."""

from sohes.losses.criterion import Criterion

__all__ = ["Criterion"]
