"""Checkpoints: what is committed comes back whole, and what is not whole is told from what is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffpipe.contract import UserError
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.runtime import Runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime.start("fp32", "cpu") as started:
        yield started


def tensors(step: int) -> dict[str, Tensor]:
    """Of several ranks (0-d too), dtypes and memory formats."""
    generator = torch.Generator().manual_seed(step)
    return {
        "net.a.weight": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "net.a.count": torch.tensor(step),
        "optimizer.a.step": torch.tensor(float(step)),
        "half": torch.randn(5, generator=generator).bfloat16(),
    }


def save(directory: Path, step: int, runtime: Runtime, keep_last: int = 9) -> Path:
    return checkpoints.save(directory, tensors(step), {"step": step, "note": "x"}, runtime, keep_last)


def zeros() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, runtime: Runtime) -> None:
    save(tmp_path, 3, runtime)
    found, complaints = checkpoints.newest_valid(tmp_path, runtime)
    assert found is not None
    assert (found.step, found.state["note"], complaints) == (3, "x", [])
    target = zeros()
    checkpoints.load(found, target)
    assert all(torch.equal(target[name], tensor) for name, tensor in tensors(3).items())


def test_a_part_of_it_can_be_loaded(tmp_path: Path, runtime: Runtime) -> None:
    found = checkpoints.open_checkpoint(save(tmp_path, 3, runtime), runtime)
    target = {"net.a.weight": torch.zeros(4, 3, 2, 2)}
    checkpoints.load(found, target, alone=True)
    assert torch.equal(target["net.a.weight"], tensors(3)["net.a.weight"])


def test_the_newest_is_the_highest_step_and_the_oldest_go(tmp_path: Path, runtime: Runtime) -> None:
    for step in (9, 10, 100, 20):
        save(tmp_path, step, runtime, keep_last=3)
    assert [p.name for p in checkpoints.committed(tmp_path)] == ["step-00000100", "step-00000020", "step-00000010"]
    (tmp_path / "latest").write_text("step-00000010")  # a hint for people, not for us
    found, _ = checkpoints.newest_valid(tmp_path, runtime)
    assert found is not None
    assert found.step == 100


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def shard(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda p: flip(shard(p)), "altered since it was saved"),
    "a shorter shard": (lambda p: shard(p).write_bytes(shard(p).read_bytes()[:-1]), "bytes instead of"),
    "a missing shard": (lambda p: shard(p).unlink(), "is missing"),
    "a changed state": (lambda p: (p / "state.json").write_text('{"step": 2}'), r"state\.json has"),
    "a file too many": (lambda p: (p / "extra").touch(), r"extra is not in manifest\.json"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "cannot be read"),
    "a broken manifest": (lambda p: (p / "manifest.json").write_text("{"), "not what a save writes"),
    "an empty manifest": (
        lambda p: (p / "manifest.json").write_text('{"files": {}, "step": 2}'),
        "not in manifest",
    ),
    "another name": (lambda p: p.rename(p.with_name("step-00000003")), "it says step 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, runtime: Runtime, kind: str) -> None:
    save(tmp_path, 1, runtime)
    harm, complaint = DAMAGE[kind]
    harm(save(tmp_path, 2, runtime))
    found, complaints = checkpoints.newest_valid(tmp_path, runtime)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    with pytest.raises(UserError, match=complaint):
        raise UserError(complaints[0])


def test_where_all_are_damaged_nothing_starts_afresh(tmp_path: Path, runtime: Runtime) -> None:
    for step in (1, 2):
        flip(shard(save(tmp_path, step, runtime)))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*step-00000002.*step-00000001.*start afresh"):
        checkpoints.newest_valid(tmp_path, runtime)


def test_what_was_never_committed_is_not_a_checkpoint(tmp_path: Path, runtime: Runtime) -> None:
    path = save(tmp_path, 5, runtime)
    path.rename(tmp_path / ".tmp-step-00000005")
    assert checkpoints.newest_valid(tmp_path, runtime) == (None, [])
    save(tmp_path, 5, runtime)  # over the debris
    assert [p.name for p in checkpoints.committed(tmp_path)] == ["step-00000005"]
    assert not list(tmp_path.glob(".tmp*"))


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_changed(tmp_path: Path, runtime: Runtime) -> None:
    found = checkpoints.open_checkpoint(save(tmp_path, 3, runtime), runtime)
    for name, tensor in (("net.a.weight", torch.zeros(4, 3, 3, 3)), ("net.b.weight", torch.zeros(1))):
        target = zeros() | {name: tensor}
        with pytest.raises(UserError, match=rf"another model: {name} (has shape \[4, 3, 2, 2\]|is missing) there"):
            checkpoints.load(found, target)
        assert all(torch.count_nonzero(t) == 0 for t in target.values())


def test_a_disk_that_refuses_leaves_the_old_checkpoint_and_no_debris(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, runtime)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_synced", full)
    with pytest.raises(UserError, match=r"could not be committed: .*No space left on device"):
        save(tmp_path, 2, runtime)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_nothing_in_it_is_pickled(tmp_path: Path, runtime: Runtime) -> None:
    path = save(tmp_path, 1, runtime)
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            length = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + length])


def test_a_run_moved_elsewhere_still_opens(tmp_path: Path, runtime: Runtime) -> None:
    save(tmp_path / "here", 1, runtime)
    shutil.move(tmp_path / "here", tmp_path / "there")
    found, _ = checkpoints.newest_valid(tmp_path / "there", runtime)
    assert found is not None
    target = zeros()
    checkpoints.load(found, target)
    assert torch.equal(target["half"], tensors(1)["half"])
