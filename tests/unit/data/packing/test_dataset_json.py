"""`dataset.json` of StyleGAN's and EDM's dataset_tool: the labels of images in chunk folders."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffpipe.data.packing.dataset_json import dataset_json, parse_dataset_json
from diffpipe.errors import UserError


@pytest.mark.parametrize(
    ("labels", "parsed"),
    [
        ([["00000/a.png", 3], ["b.png", 0]], {"00000/a.png": "3", "b.png": "0"}),
        ([["00000\\a.png", 3.0]], {"00000/a.png": "3"}),
        ([["a.png", [0, 0, 1]], ["b.png", [1.0, 0.0, 0.0]]], {"a.png": "2", "b.png": "0"}),
        ([["a.png", 202401011200]], {"a.png": "202401011200"}),
        (None, {}),
        ([], {}),
    ],
)
def test_labels_are_numbers_by_path(labels: Any, parsed: dict[str, str]) -> None:
    assert parse_dataset_json(json.dumps({"labels": labels}).encode(), "x") == parsed


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[1]", b'{"images": []}', b"[" * 100_000])
def test_a_file_of_another_tool_is_none(data: bytes) -> None:
    assert parse_dataset_json(data, "x") is None


@pytest.mark.parametrize(
    "labels",
    [
        3,
        {"a.png": 1},
        [["a.png"]],
        [[1, 2]],
        [["a.png", 1], ["./a.png", 1]],
        [["a.png", -1]],
        [["a.png", 0.5]],
        [["a.png", True]],
        [["a.png", "cat"]],
        [["a.png", [0.3, 0.7]]],
        [["a.png", [1, 1]]],
        [["a.png", float("inf")]],
        [["a.png", 10**400]],
        [["a.png", 1e300]],
        [["../secret.png", 1]],
        [["a/../../secret.png", 1]],
        [["..\\secret.png", 1]],
        [["/secret.png", 1]],
    ],
)
def test_labels_that_are_no_classes_are_refused_with_the_remedy(labels: Any) -> None:
    with pytest.raises(UserError, match=r"^zip: dataset\.json: .*--labels-file"):
        parse_dataset_json(json.dumps({"labels": labels}).encode(), "zip: dataset.json")


def test_what_is_written_is_read() -> None:
    assert parse_dataset_json(dataset_json([("a.png", 3)]), "x") == {"a.png": "3"}
    assert parse_dataset_json(dataset_json(None), "x") == {}
