"""Every stage of tests/support/stage_cases.py in processes of its own: killed, resumed, shared out, exported."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import build_stage, open_run
from diffpipe.interfaces import Generates, Reconstructs, Stage
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.integration.recorded import shown
from tests.support.checkpoint_tensors import parts
from tests.support.commands import SHARDS, diffpipe, metrics, seen, succeeds, tensors
from tests.support.stage_cases import CASES, RUNS, TOKENS, Case, real_batch

STEPS, KILLED_IN, RESUMED_AT = 7, 5, 4
LAST = f"checkpoints/step-{STEPS:08d}"
N = CHUNK + 6  # two shares


@dataclass(frozen=True)
class Trained:
    """A case's run over all steps in one process, unbroken."""

    case: Case
    run: Path
    shown: Path
    words: list[str]

    @property
    def checkpoint(self) -> Path:
        return self.run / LAST

    @property
    def generates(self) -> bool:
        return isinstance(self.case.stage(), Generates)

    def train(self, run: Path, steps: int, processes: int = 0, *more: str, **env: object) -> tuple[int, str]:
        """Exit status and stderr."""
        words = ["train", self.case.path, f"run.dir={run}", f"train.steps={steps}", *self.words, *more]
        told = {key.upper(): str(value) for key, value in env.items()}
        result = diffpipe(*words, processes=processes, module="tests.integration.recorded", env=told)
        return result.returncode, result.stderr


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty images, at the cases' size."""
    out = tmp_path_factory.mktemp("data") / "shards"
    succeeds("pack", SHARDS / "test", out, "--resolution", 8, "--per-class", 8)
    return out


def told(case: Case, shards: Path) -> list[str]:
    words = ["train.precision=fp32", "train.record_samples=true", "checkpoint.every=2", "checkpoint.async=false"]
    # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
    return [*case.overrides(), f"data.train={shards}", *words, "optimizer.eps=1e-3"]


@pytest.fixture(scope="session")
def codec(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a case that is another one's codec."""

    @functools.cache
    def train(name: str) -> Path:
        home, case = tmp_path_factory.mktemp("codec"), CASES[name]
        succeeds("train", case.path, f"run.dir={home}", "train.steps=2", *told(case, shards))
        return home

    return train


@pytest.fixture(scope="module", params=RUNS)
def trained(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    case, home = RUNS[request.param], tmp_path_factory.mktemp("trained")
    words = told(case, shards)
    if case.codec:
        words.append(f"stage.codec.run={request.getfixturevalue('codec')(case.codec)}")
    made = Trained(case, home / "run", home / "shown", words)
    status, said = made.train(made.run, STEPS, shown=made.shown)
    assert status == 0, said
    return made


def test_killed_between_two_checkpoints_and_resumed_is_bit_identical(trained: Trained, tmp_path: Path) -> None:
    status, said = trained.train(tmp_path, STEPS, killed_in_step=KILLED_IN)
    assert status == -signal.SIGKILL, said
    assert sorted(metrics(tmp_path)) == list(range(1, KILLED_IN + 1))
    status, said = trained.train(tmp_path, STEPS)
    assert status == 0, said
    assert f"resuming from {tmp_path}/checkpoints/step-{RESUMED_AT:08d}" in said

    unbroken, resumed = tensors(trained.checkpoint), tensors(tmp_path / LAST)
    stage = trained.case.stage()
    parts = {f"{part}.{net}" for part in ("net", "ema") for net in stage.networks()}
    parts |= {f"optimizer.{'+'.join(phase.trains)}" for phase in stage.phases()}
    assert {".".join(name.split(".")[:2]) for name in unbroken} == parts
    assert unbroken.keys() == resumed.keys()
    for name, tensor in unbroken.items():
        assert tensor.tobytes() == resumed[name].tobytes(), name
    assert seen(tmp_path) == seen(trained.run)
    assert losses(tmp_path) == losses(trained.run)


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Those of each phase, with what was measured beside them."""
    times = {"images_per_second", "data_wait", "time"}
    return {step: {k: v for k, v in line.items() if k not in times} for step, line in metrics(run).items()}


def test_two_one_two_processes_draw_the_samples_and_the_noise_of_one(trained: Trained, tmp_path: Path) -> None:
    for steps, processes in ((2, 2), (4, 0), (STEPS, 2)):
        status, said = trained.train(tmp_path / "run", steps, processes, shown=tmp_path / "shown")
        assert status == 0, said
    assert seen(tmp_path / "run") == seen(trained.run)
    # Pixels, noise, timesteps, latents, labels and what networks make of them for others: all that a network is shown.
    elastic, alone = shown(tmp_path / "shown"), shown(trained.shown)
    assert elastic.keys() == alone.keys()
    for where, rows in alone.items():
        assert elastic[where].keys() == rows.keys()
        for position, row in rows.items():
            np.testing.assert_allclose(elastic[where][position], row, rtol=1e-4, atol=1e-4, err_msg=where)
    assert_trained_alike(tmp_path / "run", trained)


def assert_trained_alike(run: Path, trained: Trained) -> None:
    """The losses and the weights are those of one unbroken process, but for the order of sums."""
    ours = losses(run)
    for step, line in losses(trained.run).items():
        assert ours[step] == pytest.approx(line, abs=1e-4, rel=1e-4), step
    last = tensors(run / LAST)
    for name, tensor in tensors(trained.checkpoint).items():
        assert last[name] == pytest.approx(tensor, abs=1e-3), name


@pytest.mark.parametrize("trained", TOKENS, indirect=True)
def test_killed_under_fsdp_on_two_processes_and_on_one_it_trains_as_one_unbroken(
    trained: Trained, tmp_path: Path
) -> None:
    for processes, killed_in in ((2, 3), (0, KILLED_IN)):
        status, _ = trained.train(tmp_path, STEPS, processes, "train.parallel=fsdp", killed_in_step=killed_in)
        assert status != 0
        assert sorted(metrics(tmp_path)) == list(range(1, killed_in + 1))
    status, stderr = trained.train(tmp_path, STEPS, 2, "train.parallel=fsdp")
    assert status == 0, stderr
    assert f"resuming from {tmp_path}/checkpoints/step-{RESUMED_AT:08d}" in stderr
    names = [part.name for part in parts(tmp_path / LAST)]
    assert len({*names}) < len(names), "no tensor is in shards"
    assert seen(tmp_path) == seen(trained.run)
    assert_trained_alike(tmp_path, trained)


def test_what_it_makes_does_not_depend_on_the_number_of_processes(
    trained: Trained, shards: Path, tmp_path: Path
) -> None:
    for processes in (0, 2):
        out = tmp_path / str(processes)
        if trained.generates:
            succeeds("sample", trained.run, out, "--n", N, "--seed", 3, processes=processes)
        else:
            out.mkdir()
            words = [trained.run, shards, out / "all.npy"]
            result = diffpipe(*words, processes=processes, module="tests.integration.reconstructed")
            assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "0").iterdir() if path.name != "samples.json")
    assert len(names) == (N + 1 if trained.generates else 1)
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_what_is_exported_makes_the_same_when_it_is_loaded_again(trained: Trained, tmp_path: Path) -> None:
    succeeds("export", trained.run, tmp_path)
    with Runtime.start("fp32", "cpu") as runtime:
        run = open_run(trained.run, [], runtime)
        experiment = load_config(Experiment, tmp_path / "config.yaml")
        stage = build_stage(experiment, run.shape, runtime).stage
        fresh = {name: runtime.place(net).eval() for name, net in stage.networks().items()}
        assert {f"{name}.safetensors" for name in fresh} | {"config.yaml"} == {path.name for path in tmp_path.iterdir()}
        assert not torch.equal(makes(stage, fresh), makes(run.stage, run.nets))
        for name, net in fresh.items():
            net.load_state_dict(load_file(tmp_path / f"{name}.safetensors"), strict=True)
        assert torch.equal(makes(stage, fresh), makes(run.stage, run.nets))


def makes(stage: Stage, nets: Mapping[str, nn.Module]) -> Tensor:
    """Ten images: samples, or reconstructions where it generates none."""
    some = real_batch(10)
    rng = KeyedRNG(0, some.positions)
    if isinstance(stage, Generates):
        return stage.generate(nets, rng, some.labels)
    assert isinstance(stage, Reconstructs)
    return stage.reconstruct(nets, some.images, rng)
