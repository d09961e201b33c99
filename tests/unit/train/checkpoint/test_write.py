"""A commit: its files are those of its manifest, safetensors reads them, and a failure leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffpipe.errors import UserError
from diffpipe.train.checkpoint import write
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.retention import prune
from diffpipe.train.checkpoint.write import TensorShard, commit
from diffpipe.train.distributed import Communicator
from tests.support.thread_ranks import ThreadCommunicator

ALONE = Communicator()
SHARDS = {"a": TensorShard(torch.arange(6.0).reshape(2, 3), (2, 0)), "b": TensorShard(torch.tensor(7), ())}


def test_every_file_is_in_the_manifest_and_read_by_safetensors(tmp_path: Path) -> None:
    commit(tmp_path, 5, SHARDS, '{"step": 5}', ALONE)
    path = tmp_path / "step-00000005"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 5
    assert {file.name for file in path.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    tensors = load_file(path / "rank-00000.safetensors")
    assert {name: torch.equal(tensors[name], shard.values) for name, shard in SHARDS.items()} == {"a": True, "b": True}
    with safe_open(path / "rank-00000.safetensors", "pt") as file:
        (offsets,) = (json.loads(value) for value in file.metadata().values())
    assert [list(offsets[name].values()) for name in "ab"] == [[[2, 0]], [[]]]
    assert (path / "state.json").read_text() == '{"step": 5}'


def test_the_same_step_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for text in ("first", "second"):
        commit(tmp_path, 5, SHARDS, text, ALONE)
    assert (tmp_path / "step-00000005" / "state.json").read_text() == "second"
    prune(tmp_path, CheckpointConfig())  # as the checkpointer does after each commit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005"]


def test_a_disk_without_room_for_the_name_of_the_newest_has_the_checkpoint_and_no_old_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then old checkpoints are removed, which makes room."""
    commit(tmp_path, 5, SHARDS, "", ALONE)
    written = write.atomic_write

    def full(path: Path, content: str) -> None:
        if path.name == "latest":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, content)

    monkeypatch.setattr(write, "atomic_write", full)
    commit(tmp_path, 6, SHARDS, "", ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_each_rank_has_a_file_and_one_without_tensors_has_none(tmp_path: Path) -> None:
    values, barrier = [None] * 3, threading.Barrier(3)
    comms = [ThreadCommunicator(rank, 3, values=values, threads=barrier) for rank in range(3)]
    shards = [{"a": SHARDS["a"]}, {}, {"b": SHARDS["b"]}]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(commit, tmp_path, 1, shards[c.rank], "", c) for c in comms]
    assert [job.result() for job in jobs] == [None] * 3
    names = [path.name for path in (tmp_path / "step-00000001").glob("rank-*")]
    assert sorted(names) == ["rank-00000.safetensors", "rank-00002.safetensors"]


def test_a_checkpoint_that_cannot_be_committed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "sync", full)
    with pytest.raises(UserError, match=r"could not be written: rank 0: .*No space left on device; free some space"):
        commit(tmp_path, 5, SHARDS, "", ALONE)
    assert list(tmp_path.iterdir()) == []
