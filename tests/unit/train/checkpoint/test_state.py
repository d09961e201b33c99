"""RunState: its JSON comes back as it was, formats 1 and 2 are migrated, and anything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from diffpipe.resolution import square
from diffpipe.train.checkpoint.state import FORMAT, LatentStatistics, RunState, Shape, ValidationSet, parse_state

STATE = RunState(
    step=6,
    position=768,
    skipped=1,
    bad_samples=["shard-000000.tar: 17: no image"],
    fingerprint="abc",
    shape=Shape(channels=1, resolution=square(28), classes=10),
    experiment={"seed": 3, "train": {"steps": 60}},
    latents=LatentStatistics(mean=[0.25], std=[1.5], images=1000),
    validation=ValidationSet(fingerprint="def", n=512),
)

FORMAT_1 = {
    "step": 6,
    "position": 768,
    "skipped": 1,
    "bad": ["shard-000000.tar: 17: no image"],
    "identity": {"seed": 3, "data": {"fingerprint": "abc", "batch_size": 128}},
    "shape": {"channels": 1, "resolution": 28, "classes": 10},
    "experiment": {"seed": 3, "train": {"steps": 60}},
    "latents": {"mean": [0.25], "std": [1.5], "images": 1000},
    "reconstruction": None,
    "validation": {"fingerprint": "def", "n": 512},
}


def tree(**changes: Any) -> dict[str, Any]:
    return json.loads(STATE.model_dump_json()) | changes


def test_a_state_comes_back_from_its_json() -> None:
    assert parse_state(tree(), FORMAT) == STATE


def test_format_1_is_migrated() -> None:
    before = json.dumps(FORMAT_1)
    assert parse_state(FORMAT_1, 1) == STATE
    assert json.dumps(FORMAT_1) == before


def test_format_2_is_migrated() -> None:
    assert parse_state(tree(format=2), 2) == STATE


def test_format_1_without_what_a_resume_compares_is_no_state() -> None:
    with pytest.raises(KeyError, match="identity"):
        parse_state({key: value for key, value in FORMAT_1.items() if key != "identity"}, 1)


@pytest.mark.parametrize("place", ["state", "shape", "latents", "validation"])
def test_an_unknown_field_is_refused(place: str) -> None:
    unknown = tree()
    (unknown if place == "state" else unknown[place])["epoch"] = 2
    with pytest.raises(ValidationError, match=r"epoch\s+Extra inputs are not permitted"):
        parse_state(unknown, FORMAT)


@pytest.mark.parametrize("field", ["step", "position"])
@pytest.mark.parametrize("value", ["-3", "NaN", "6.5", "6.0", "true", '"6"', "null", "Infinity"])
def test_a_step_is_a_whole_number_from_zero(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        parse_state(tree(**{field: json.loads(value)}), FORMAT)


@pytest.mark.parametrize("field", ["step", "position", "fingerprint", "shape", "experiment"])
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\s+Field required"):
        parse_state({key: value for key, value in tree().items() if key != field}, FORMAT)


@pytest.mark.parametrize(("other", "manifest"), [(1, FORMAT), (2, FORMAT), (FORMAT + 1, FORMAT), (1, 2), (FORMAT, 2)])
def test_a_state_of_another_format_than_its_manifest_says_is_refused(other: int, manifest: int) -> None:
    with pytest.raises(ValidationError, match="format"):
        parse_state(tree(format=other), manifest)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"state"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_state(json.loads(text), FORMAT)


def test_a_name_that_is_not_utf8_is_saved_with_an_escape() -> None:
    """A key of a sample, a folder of shards: without this, no save of the run would ever succeed."""
    data = {"train": "shards\udcff", "mixture": [{"shards": ["a", "b\udcff"]}], "batch_size": 8}
    state = parse_state(tree(bad_samples=["a.tar: k\udcff20: no image"], experiment={"data": data}), FORMAT)
    read = parse_state(json.loads(state.text().encode()), FORMAT)
    assert read.bad_samples == ["a.tar: k\\udcff20: no image"]
    expected = {"train": "shards\\udcff", "mixture": [{"shards": ["a", "b\\udcff"]}], "batch_size": 8}
    assert read.experiment == {"data": expected}
    plain = parse_state(tree(bad_samples=["ключ"]), FORMAT)
    assert plain.text() == plain.model_dump_json(indent=1)
    assert plain.text(indent=None) == plain.model_dump_json()
