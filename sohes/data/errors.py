# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with images and labels; messages name the file and what was expected."""

from __future__ import annotations

from sohes.utils.errors import SohesError


class DataError(SohesError, ValueError):
    """Images or labels that are not what they should be."""


class DataNotFoundError(SohesError, FileNotFoundError):
    """Images or labels that are not where they should be."""
