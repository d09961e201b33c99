"""The keys in which two configs differ."""

from __future__ import annotations

from diffpipe.config.differences import MISSING, Difference, differences, flatten

FIRST = {"seed": 0, "stage": {"kind": "ddpm", "network": {"channels": 8}}, "optimizer": {"betas": [0.9, 0.999]}}
SECOND = {"seed": 0, "stage": {"kind": "vae"}, "optimizer": {"betas": [0.9, 0.99]}, "eval": {"every": None}}


def test_the_keys_that_differ_come_with_both_values() -> None:
    assert differences(FIRST, SECOND) == [
        Difference("stage.kind", "ddpm", "vae"),
        Difference("stage.network.channels", 8, MISSING),
        Difference("optimizer.betas", [0.9, 0.999], [0.9, 0.99]),
        Difference("eval.every", MISSING, None),
    ]
    assert differences(FIRST, FIRST) == []


def test_a_difference_reads_as_yaml_on_one_line() -> None:
    assert [*map(str, differences(FIRST, SECOND))] == [
        "stage.kind: ddpm → vae",
        "stage.network.channels: 8 → (absent)",
        "optimizer.betas: [0.9, 0.999] → [0.9, 0.99]",
        "eval.every: (absent) → null",
    ]
    assert str(Difference("data.train", ["ä" * 100], {"b": "x: y"})) == f"data.train: [{'ä' * 100}] → {{b: 'x: y'}}"


def test_a_difference_in_json_has_the_values_that_there_are() -> None:
    assert [pair.as_dict() for pair in differences(FIRST, SECOND)][1:] == [
        {"key": "stage.network.channels", "first": 8},
        {"key": "optimizer.betas", "first": [0.9, 0.999], "second": [0.9, 0.99]},
        {"key": "eval.every", "second": None},
    ]


def test_a_tree_is_flattened_to_dotted_keys() -> None:
    assert flatten(SECOND)["stage.kind"] == "vae"
    assert flatten({"a": {}}) == {}
