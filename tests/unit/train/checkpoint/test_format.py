"""The names and the manifest of checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffpipe.train.checkpoint.format import Manifest, committed, describe, manifest_sha256, step_name, step_of
from diffpipe.train.checkpoint.state import FORMAT


def test_a_name_gives_its_step_and_names_sort_as_steps() -> None:
    steps = [0, 9, 10, 99_999_999]
    names = [step_name(step) for step in steps]
    assert names == sorted(names)
    assert [step_of(Path("runs") / name) for name in names] == steps
    assert step_of(Path(step_name(123_456_789))) == 123_456_789


def test_only_folders_named_after_a_step_are_committed_newest_first(tmp_path: Path) -> None:
    for name in (".tmp-step-00000009", "damaged-step-00000008", "step-2", "step-00000010", "step-x", "step-00000003"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000011").touch()
    assert [path.name for path in committed(tmp_path)] == ["step-00000010", "step-00000003", "step-2"]
    assert committed(tmp_path / "none") == []


def test_a_file_is_described_by_its_size_and_hashlibs_hash(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"x" * 3000)
    digest = hashlib.sha256(b"x" * 3000).hexdigest()
    entry = describe(tmp_path / "manifest.json")
    assert (entry.size, entry.sha256) == (3000, digest)
    assert manifest_sha256(tmp_path) == digest
    assert manifest_sha256(tmp_path / "none") is None


def test_a_manifest_comes_back_from_its_json_and_refuses_anything_else() -> None:
    manifest = Manifest(format=FORMAT, step=3, files={})
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    for wrong in ({"format": FORMAT + 1}, {"format": 0}, {"step": -1}, {"step": "3"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Manifest.model_validate({"format": FORMAT, "step": 3, "files": {}} | wrong)
