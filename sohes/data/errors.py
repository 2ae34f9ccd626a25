# SPDX-License-Identifier: Apache-2.0
"""Errors of images and labels; messages name the file and what was expected."""

from __future__ import annotations

from sohes.utils.errors import SohesError


class DataError(SohesError, ValueError):
    """Images or labels are invalid."""


class DataNotFoundError(SohesError, FileNotFoundError):
    """Images or labels do not exist."""
