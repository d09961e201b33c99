"""A step on real data: of every phase, from the run's own position, without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from diffpipe.experiment.doctor.dry_step import DryStep, dry_step
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.preparation import prepare_stage
from diffpipe.train.checkpoint import newest_valid
from diffpipe.train.distributed import Communicator
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import write_tar


def step(home: Path, runtime: Runtime, case: str, *words: str, remote: bool = False) -> DryStep:
    images = home / "images"
    if not images.exists():
        indexed_shards(images, 12)
    words = ("data.batch_size=4", "data.test=null", f"run.dir={home / 'run'}", f"data.train={images}", *words)
    experiment = CASES[case].experiment(*words)
    shards, shape = open_data(experiment, 1)
    checkpoint, _ = newest_valid(experiment.run.checkpoints, Communicator())
    if remote:
        shards.shards = tuple(shard._replace(remote=object()) for shard in shards.shards)  # pyright: ignore[reportAttributeAccessIssue]
    prepared = prepare_stage(experiment, shards, shape, checkpoint, runtime)
    return dry_step(prepared, shards, shape, checkpoint, runtime)


def test_all_samples_of_the_step_that_cannot_be_read_are_named(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "images").mkdir()
    write_tar(tmp_path / "images" / "a.tar", {f"{i}.{e}": b"1" for i in range(4) for e in ("png", "cls")})
    write_index(tmp_path / "images")
    with pytest.raises(UserError, match="not an image") as caught:
        step(tmp_path, runtime, "ddpm")
    assert sorted(fault.split(": ")[1] for fault in caught.value.faults) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("case", "words"), [("ddpm", ("train.accumulate=2",)), ("gan", ()), ("vae", ("stage.patch={start: 100}",))]
)
def test_a_step_is_taken_of_each_phase_and_nothing_is_written(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, case: str, words: tuple[str, ...]
) -> None:
    phases: list[str] = []
    update = Trainer._update

    def noted(self: Trainer, phase: Any, *args: Any) -> None:
        phases.append(phase.name)
        update(self, phase, *args)

    monkeypatch.setattr(Trainer, "_update", noted)
    words_of_step, findings = step(tmp_path, runtime, case, "train.steps=1000", *words)
    assert "on 4 images, read in" in words_of_step
    assert findings == ()
    expected = {"ddpm": {"denoise"}, "gan": {"discriminator", "generator"}}
    if case in expected:
        assert expected[case] <= set(phases)
    else:
        assert "discriminator" in phases
    assert not (tmp_path / "run").exists()


def test_remote_shards_are_not_fetched(tmp_path: Path, runtime: Runtime) -> None:
    assert "black images, as the shards are remote" in step(tmp_path, runtime, "ddpm", remote=True).words


def test_an_error_of_the_stage_is_told_and_a_refusal_is_passed_on(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2\ndo not fit")

    monkeypatch.setattr(Trainer, "train_step", fails)
    with pytest.raises(
        UserError, match=r"a step fails with RuntimeError: mat1 and mat2 do not fit; `diffpipe train --debug`"
    ):
        step(tmp_path, runtime, "ddpm")

    def refuses(*_: Any) -> None:
        raise UserError("too few")

    monkeypatch.setattr(Trainer, "train_step", refuses)
    with pytest.raises(UserError, match=r"^too few$"):
        step(tmp_path, runtime, "ddpm")
