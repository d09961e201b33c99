"""Averages of any length from the snapshots of a training, against the exact mean of a path of the weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffpipe
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from diffpipe.experiment import post_hoc_ema, snapshots
from diffpipe.experiment.post_hoc_ema import Average
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint import committed, newest_valid, open_checkpoint
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.distributed import Communicator
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.power_profile import sigma_rel_to_gamma
from diffpipe.train.runtime import Runtime
from tests.support.commands import CONFIG
from tests.support.run_states import run_state
from tests.support.runs import TINY_WORDS, saved_run
from tests.support.stage_cases import CASES
from tests.support.toy_stages import Toy, batch

STEPS = 128
PATH = 2 + np.log(np.arange(1, STEPS + 1)) + np.sin(np.arange(STEPS) / 20)


def on_path(runtime: Runtime, experiment: Any) -> Trainer:
    """A trainer whose weights are set to the step's point of PATH after each update, before the averages see them."""
    train = TrainConfig(steps=STEPS, accumulate=2)
    trainer = Trainer(Toy(), runtime, train, OptimizerConfig(), experiment.ema, seed=0, batch_size=4)
    average: Any = trainer.averages["point"]
    update = average.update

    def put_and_update(step: int) -> None:
        with torch.no_grad():
            for p in trainer.nets["point"].parameters():
                p.fill_(PATH[step])
        update(step)

    average.update = put_and_update
    return trainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights were on PATH, with two micro-batches a step, stopped and resumed between two snapshots."""
    home = tmp_path_factory.mktemp("runs") / "photos"
    experiment = CASES["ddpm"].experiment(f"run.dir={home}", "ema={kind: power, snapshot_every: 2}")
    tree = experiment.model_dump(mode="json")
    config = CheckpointConfig.model_validate({"async": False})
    with Runtime.start("fp32", "cpu") as runtime:
        for stop in (51, STEPS):
            trainer = on_path(runtime, experiment)
            newest, _ = newest_valid(home / "checkpoints", runtime.comm)
            snapshots.recover(experiment, newest)
            if newest is not None:
                checkpoints.load(newest, trainer.state(), runtime.comm)
                trainer.step = newest.step
            with AsyncCheckpointer(home / "checkpoints", config, Communicator()) as checkpointer:
                while trainer.step < stop:
                    trainer.train_step([batch(range(2)), batch(range(2))])
                    due = snapshots.due(experiment, trainer.step)
                    last = [checkpointer.checkpoints] if trainer.step == stop else []
                    checkpointer.save(trainer.state(), run_state(trainer.step, experiment=tree), [*due, *last])
    assert len(committed(home / "ema")) == STEPS // 2
    return home


def average(home: Path, sigma_rel: float | None, runtime: Runtime) -> Average:
    path = home / "checkpoints" / f"step-{STEPS:08d}"
    return post_hoc_ema.average(open_checkpoint(path, Communicator()), sigma_rel, runtime)


def loaded(average: Average) -> dict[str, torch.Tensor]:
    tensors = {"point.weight": torch.zeros(1, 1), "point.bias": torch.zeros(1)}
    average.load(tensors)
    return tensors


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_any_length_is_the_exact_mean_of_the_path(home: Path, runtime: Runtime, sigma_rel: float) -> None:
    of_length = average(home, sigma_rel, runtime)
    exact = np.diff((np.arange(STEPS + 1) / STEPS) ** (sigma_rel_to_gamma(sigma_rel) + 1)) @ PATH
    for tensor in loaded(of_length).values():
        assert tensor.item() == pytest.approx(exact, rel=1e-3)
    assert of_length.name == f"ema {sigma_rel:g}"
    if sigma_rel in (0.05, 0.1):  # in the checkpoint
        assert of_length.describe() == {}
    else:
        about = of_length.describe()["ema"]
        assert about["snapshots"] == STEPS // 2 - 1
        assert about["misfit"] < 0.02


def test_without_a_length_it_is_the_first_that_the_run_keeps(home: Path, runtime: Runtime) -> None:
    default = average(home, None, runtime)
    assert default.name == "ema 0.05"
    assert loaded(default) == loaded(average(home, 0.05, runtime))


def test_too_few_snapshots_are_refused(home: Path, runtime: Runtime, tmp_path: Path) -> None:
    alone = tmp_path / "run"
    shutil.copytree(home / "checkpoints", alone / "checkpoints")
    with pytest.raises(
        UserError, match=r"--ema 0.2: the averages of the checkpoint and of 0 snapshots in .*/run/ema miss"
    ):
        average(alone, 0.2, runtime)
    assert average(alone, 0.1, runtime).name == "ema 0.1"


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.28, 3.0, math.nan])
def test_a_length_out_of_range_is_refused(home: Path, runtime: Runtime, sigma_rel: float) -> None:
    with pytest.raises(UserError, match=r"--ema .*: lengths are above 0 and below 0.28; give one such as 0.1"):
        average(home, sigma_rel, runtime)


def test_a_damaged_snapshot_is_named(home: Path, runtime: Runtime) -> None:
    (file,) = (home / "ema" / "step-00000064").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"ema/step-00000064: not a whole snapshot: .* altered.*; move it away"):
        average(home, 0.2, runtime)
    file.write_bytes(content)


def test_a_run_with_the_classical_average_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(tmp_path / "run")
    assert main(["sample", str(tmp_path / "run"), str(tmp_path / "out"), "--ema", "0.1"]) == 2
    assert capsys.readouterr().err == (
        f"diffpipe sample: error: --ema 0.1: {tmp_path}/run has one average of a fixed length (ema.kind=classical); "
        f"leave --ema out, or train with ema.kind=power\n"
    )
    with pytest.raises(UserError, match="raw takes the trained weights, and ema an average of them"):
        diffpipe.load(tmp_path / "run", raw=True, ema=0.1)


def test_the_command_samples_from_an_average_of_another_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    words = ["ema={kind: power, sigma_rel: [0.1, 0.05], snapshot_every: 1}", "train.steps=5", f"run.dir={run}"]
    assert diffpipe.train(CONFIG, [*TINY_WORDS, *words]) is None
    assert main(["sample", str(run), str(out), "--n", "1", "--steps", "1", "--ema", "0.08"]) == 0
    assert "1 image of step 5, ema 0.08 weights" in capsys.readouterr().out
    described = json.loads((out / "samples.json").read_text())["protocol"]["generated"]
    assert (described["weights"], described["ema"]["snapshots"]) == ("ema 0.08", 4)
    networks = {ema: diffpipe.load(run, ema=ema).networks["denoiser"].state_dict() for ema in (None, 0.1, 0.05, 0.08)}
    for name, tensor in networks[None].items():
        assert torch.equal(tensor, networks[0.1][name])
        # Between the two that the run keeps, to the rounding of float32.
        low, high = (f(networks[0.1][name], networks[0.05][name]) for f in (torch.minimum, torch.maximum))
        slack = 0.1 * (high - low) + 1e-6
        assert ((networks[0.08][name] >= low - slack) & (networks[0.08][name] <= high + slack)).all(), name
