"""Labels in the `dataset.json` of StyleGAN's and EDM's dataset_tool, whose folders are chunks of a thousand images.

`{"labels": [["00000/img00000000.png", 6], …]}`, or `{"labels": null}` where there are none. Source:
https://github.com/NVlabs/edm/blob/main/dataset_tool.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from diffpipe.data.index.scan import CLASS_DIGITS
from diffpipe.errors import UserError

NAME = "dataset.json"
_MOST = 10**CLASS_DIGITS


def parse_dataset_json(data: bytes, where: str) -> dict[str, str] | None:
    """The label of each image by its path, a number of digits; none where the images have no labels.

    None where this is another tool's file. Raises UserError, which begins with `where`, where it is dataset_tool's and
    its labels are not classes.
    """
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or "labels" not in tree:
        return None
    rows = tree["labels"]
    if rows is None or rows == []:
        return {}
    if not isinstance(rows, list):
        raise _refused(where, "its labels are no list of [path, label]")
    labels: dict[str, str] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
            raise _refused(where, "its labels are no list of [path, label]")
        parts = row[0].replace("\\", "/").split("/")
        if row[0].startswith("/") or ".." in parts:
            raise _refused(where, f"{row[0][:80]!r} is not a path below its folder")
        path = "/".join(part for part in parts if part not in ("", "."))
        if path in labels:
            raise _refused(where, f"{path} is named twice")
        labels[path] = str(_class_of(row[1], path, where))
    return labels


def _class_of(label: Any, path: str, where: str) -> int:
    """The class that a label means: a whole number, or a vector with a single one and zeros."""
    if isinstance(label, list) and label.count(1) == 1 and label.count(0) == len(label) - 1:
        return label.index(1)
    if isinstance(label, int | float) and not isinstance(label, bool) and 0 <= label < _MOST and int(label) == label:
        return int(label)
    raise _refused(where, f"the label of {path} is neither a number ≥ 0 nor a vector with a single 1")


def _refused(where: str, reason: str) -> UserError:
    return UserError(f"{where}: {reason}; correct it, or give the labels with --labels-file")


def dataset_json(labels: Sequence[tuple[str, int]] | None) -> bytes:
    """The content of a dataset.json with the label of each image by its path, or without labels."""
    return json.dumps({"labels": None if labels is None else [list(row) for row in labels]}).encode()
