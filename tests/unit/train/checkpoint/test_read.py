"""Reading checkpoints: a saved one loads bit for bit, and a damaged one is recognized and skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.format import describe
from diffpipe.train.checkpoint.read import limited_to, open_checkpoint
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.checkpoint.state import FORMAT, Shape
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state

ALONE = Communicator()


def tensors(step: int) -> dict[str, Tensor]:
    """Tensors of several dimensions (0-d too), dtypes and memory formats."""
    generator = torch.Generator().manual_seed(step)
    return {
        "net.a.weight": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "net.a.count": torch.tensor(step),
        "optimizer.a.step": torch.tensor(float(step)),
        "half": torch.randn(5, generator=generator).bfloat16(),
    }


def save(directory: Path, step: int) -> Path:
    with AsyncCheckpointer(directory, CheckpointConfig(keep_last=9), ALONE) as checkpointer:
        checkpointer.save(tensors(step), run_state(step, bad_samples=["x"]))
    return directory / f"step-{step:08d}"


def zeros() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}


def test_a_saved_checkpoint_loads_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 3)
    newest, damaged = checkpoints.newest_valid(tmp_path, ALONE)
    assert newest is not None
    assert (newest.step, newest.state.bad_samples, damaged) == (3, ["x"], [])
    target = zeros()
    checkpoints.load(newest, target, ALONE)
    assert all(torch.equal(target[name], tensor) for name, tensor in tensors(3).items())


def test_a_part_of_a_checkpoint_can_be_loaded(tmp_path: Path) -> None:
    newest = checkpoints.open_checkpoint(save(tmp_path, 3), ALONE)
    target = {"net.a.weight": torch.zeros(4, 3, 2, 2)}
    checkpoints.load(newest, target, ALONE)
    assert torch.equal(target["net.a.weight"], tensors(3)["net.a.weight"])


def test_the_newest_is_the_highest_step_whatever_else_is_there(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    (tmp_path / "step-00000009").rename(tmp_path / "step-9")  # a longer name is not newer
    for age, step in enumerate(("step-00000010", "step-9", "step-00000008")):  # nor is a later time
        os.utime(tmp_path / step, (age, age))
    (tmp_path / "latest").write_text("step-00000008")  # for people only
    for name in ("step-abc", "step-", "step-11.bak", "estep-12"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000013").touch()
    assert [p.name for p in checkpoints.committed(tmp_path)] == ["step-00000010", "step-9", "step-00000008"]
    newest, damaged = checkpoints.newest_valid(tmp_path, ALONE)
    assert newest is not None
    assert (newest.step, damaged) == (10, [])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def shard(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


def manifest(path: Path, **changes: object) -> None:
    whole = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(whole | changes))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda p: flip(shard(p)), "altered since it was saved"),
    "a shorter shard": (lambda p: shard(p).write_bytes(shard(p).read_bytes()[:-1]), "bytes instead of"),
    "a missing shard": (lambda p: shard(p).unlink(), "is missing"),
    "a changed state": (lambda p: (p / "state.json").write_text('{"step": 2}'), r"state\.json has"),
    "a file too many": (lambda p: (p / "extra").touch(), r"extra is not in manifest\.json"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "cannot be read"),
    "a broken manifest": (lambda p: (p / "manifest.json").write_text("{"), "not what a save writes"),
    "no bytes that are text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\x00"), "not what a save writes"),
    "an abyss of brackets": (lambda p: (p / "manifest.json").write_text("[" * 100_000), "not what a save writes"),
    "a number that is a word": (lambda p: manifest(p, step="two"), "not what a save writes"),
    "a list of files that is none": (lambda p: manifest(p, files=["state.json"]), "not what a save writes"),
    "a folder for a manifest": (
        lambda p: ((p / "manifest.json").unlink(), (p / "manifest.json").mkdir()),
        "cannot be read",
    ),
    "an empty manifest": (lambda p: manifest(p, files={}), "not in manifest"),
    "another name": (lambda p: p.rename(p.with_name("step-00000003")), "its manifest.json is of step 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 1)
    harm, complaint = DAMAGE[kind]
    harm(save(tmp_path, 2))
    newest, [damaged] = checkpoints.newest_valid(tmp_path, ALONE)
    assert newest is not None
    assert newest.step == 1
    assert re.search(complaint, str(damaged))


def test_a_checkpoint_of_a_newer_version_is_refused_and_not_renamed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest(save(tmp_path, 2), format=FORMAT + 1, more={"of": "what is to come"})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        UserError, match=rf"step-00000002 was written by a newer version of diffpipe \(format {FORMAT + 1}; this"
    ):
        recover(tmp_path, ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_state_of_another_step_than_the_manifests_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    state = json.loads((path / "state.json").read_text()) | {"step": 9}
    (path / "state.json").write_text(json.dumps(state))
    entry = describe(path / "state.json").model_dump()
    manifest(path, files=json.loads((path / "manifest.json").read_text())["files"] | {"state.json": entry})
    with pytest.raises(UserError, match=r"it is of step 9, and manifest\.json of step 2"):
        checkpoints.open_checkpoint(path, ALONE)


def test_where_all_are_damaged_nothing_starts_from_scratch(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(shard(save(tmp_path, step)))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is whole .*step-00000002.*step-00000001.*start from scratch"
    ):
        checkpoints.newest_valid(tmp_path, ALONE)


def test_what_was_never_committed_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    path.rename(tmp_path / ".tmp-step-00000005")
    assert checkpoints.newest_valid(tmp_path, ALONE) == (None, [])
    save(tmp_path, 5)  # over what is left of the first
    assert [p.name for p in checkpoints.committed(tmp_path)] == ["step-00000005"]
    assert not list(tmp_path.glob(".tmp*"))


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    newest = checkpoints.open_checkpoint(save(tmp_path, 3), ALONE)
    for name, tensor in (("net.a.weight", torch.zeros(4, 3, 3, 3)), ("net.b.weight", torch.zeros(1))):
        target = zeros() | {name: tensor}
        with pytest.raises(UserError, match=rf"another model: {name} (has shape \[4, 3, 2, 2\]|is missing) there"):
            checkpoints.load(newest, target, ALONE)
        assert all(torch.count_nonzero(t) == 0 for t in target.values())


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            length = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + length])


def test_a_run_moved_elsewhere_still_opens(tmp_path: Path) -> None:
    save(tmp_path / "here", 1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    newest, _ = checkpoints.newest_valid(tmp_path / "there", ALONE)
    assert newest is not None
    target = zeros()
    checkpoints.load(newest, target, ALONE)
    assert torch.equal(target["half"], tensors(1)["half"])


def test_networks_of_a_forged_config_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 5), ALONE)
    most = sum(tensor.numel() for tensor in tensors(5).values())
    with limited_to(checkpoint):
        nn.Linear(1, most // 2)
    with pytest.raises(UserError, match=f"have more than the {most} values that it holds"), limited_to(checkpoint):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9))
    for wide in (2**62, 10**40):
        with pytest.raises(UserError, match=f"have more than the {most} values that it holds"), limited_to(checkpoint):
            nn.Linear(8, wide)
    nn.Linear(1, most + 1)  # elsewhere there is no limit


@pytest.mark.parametrize("build", [lambda n: nn.Embedding(n, 64), lambda n: nn.Linear(8, n), torch.ones])
def test_a_tensor_of_a_forged_config_is_refused_before_its_memory_is_taken(
    tmp_path: Path, build: Callable[[int], object]
) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 5), ALONE)
    with limited_to(checkpoint):
        torch.zeros(1 << 20)  # a table that is not stored
    with (
        pytest.raises(UserError, match=r"^[^;]* classes?, have more than the .* holds; take another"),
        limited_to(checkpoint),
    ):
        build(10**9)


@pytest.mark.parametrize(
    "shape", [{"resolution": 2**40}, {"resolution": [8, 2**40]}, {"channels": 2**62}, {"classes": 10**30}]
)
def test_a_shape_of_no_images_is_refused(shape: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"less than or equal to|from 1 to 65536"):
        Shape.model_validate({"channels": 3, "resolution": 8} | shape)
