"""The manifest of checkpoints."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffpipe.train.checkpoint.format import Manifest, describe, manifest_sha256
from diffpipe.train.checkpoint.state import FORMAT


def test_a_file_is_described_by_its_size_and_hashlibs_hash(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"x" * 3000)
    digest = hashlib.sha256(b"x" * 3000).hexdigest()
    entry = describe(tmp_path / "manifest.json")
    assert (entry.size, entry.sha256) == (3000, digest)
    assert manifest_sha256(tmp_path) == digest
    assert manifest_sha256(tmp_path / "none") is None


def test_a_manifest_that_cannot_be_read_just_now_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "open", stale)
    with pytest.raises(OSError, match="Stale"):
        manifest_sha256(tmp_path)


def test_a_manifest_comes_back_from_its_json_and_refuses_anything_else() -> None:
    manifest = Manifest(format=FORMAT, step=3, files={})
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    for wrong in ({"format": FORMAT + 1}, {"format": 0}, {"step": -1}, {"step": "3"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Manifest.model_validate({"format": FORMAT, "step": 3, "files": {}} | wrong)
