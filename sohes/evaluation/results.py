# SPDX-License-Identifier: Apache-2.0
"""Tells files that `sohes.evaluate` wrote from others, which it does not replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from sohes.evaluation.coco_index import BadInput

OutputKind = Literal["metrics", "table", "page"]
EARLIER: dict[OutputKind, str] = {
    "metrics": "earlier result of sohes.evaluate",
    "table": "earlier table of sohes.evaluate",
    "page": "earlier page of sohes.evaluate",
}
PAGE_MARK = "SOHES comparison"
"""Ends the title of a page that compares runs."""
_LONGEST = 2**20
"""Bytes that are read of a file; metrics are far shorter."""


def is_result(path: Path, kind: OutputKind) -> bool:
    """Whether a file is empty or an earlier result of this kind: metrics as JSON, a table of images, a page.

    Raises BadInput if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8", "replace")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read, {error.strerror}") from error
    if not text.strip():
        return True
    if kind == "page":
        return text.startswith("<!DOCTYPE html>") and f"{PAGE_MARK}</title>" in text
    first = text.partition("\n")[0]
    if kind == "table" and first.startswith("image,true_masks,predicted_masks"):
        return True
    names = {"num_images", "masks_per_image"} if kind == "metrics" else {"image", "true_masks", "predicted_masks"}
    try:
        content = json.loads(text if kind == "metrics" else first)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and names <= content.keys()
