"""The memory of a process: held against what a trainer and a sharded module really hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from diffpipe.experiment.doctor import memory
from diffpipe.experiment.doctor.memory import ModelBytes, model_bytes
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.preparation import build_trainer, prepare_stage
from diffpipe.experiment.resources import JobSize
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values
from tests.support.runs import indexed_shards, saved_run
from tests.support.stage_cases import CASES, SHAPE

MB = 10**6


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("ddpm", ()),
        ("ddpm", ("ema={kind: power, sigma_rel: [0.05, 0.1, 0.15]}",)),
        ("ddpm", ("optimizer.kind=muon", "optimizer.muon_convolutions=true")),
        ("gan", ()),
        ("vae", ()),
        ("flow", ()),
        ("ddpm", ("run.init={home}/source", "lora.rank=2", "init.fresh=[denoiser.label]")),
    ],
)
def test_the_bytes_of_a_checkpoint_are_those_of_the_trainers_state(
    tmp_path: Path, runtime: Runtime, case: str, words: tuple[str, ...]
) -> None:
    images = indexed_shards(tmp_path / "images", 12)
    saved_run(tmp_path / "source")
    words = tuple(word.replace("{home}", str(tmp_path)) for word in words)
    words = ("data.batch_size=4", "data.test=null", f"run.dir={tmp_path}", f"data.train={images}", *words)
    experiment = CASES[case].experiment(*words)
    shards, shape = open_data(experiment, 1)
    prepared = prepare_stage(experiment, shards, shape, None, runtime)
    trainer = build_trainer(prepared, shards, None, runtime)
    state = {name: tensor for name, tensor in trainer.state().items() if not name.endswith(".step")}
    assert model_bytes(without_values(prepared.trained), experiment).checkpoint == sum(t.nbytes for t in state.values())
    assert memory.activations_per_sample(experiment, prepared.trained, shape, runtime)


def test_a_shard_has_as_many_rows_as_the_largest_one() -> None:
    nets = {"a": nn.Linear(10, 7, bias=False)}
    experiment = CASES["ddpm"].experiment()
    assert model_bytes(nets, experiment) == ModelBytes(280, 280, 560, 280)
    assert model_bytes(nets, experiment, 2) == ModelBytes(160, 160, 320, 160)
    assert model_bytes(nets, experiment, 64) == ModelBytes(40, 40, 80, 40)
    assert memory.padded(nets, 2) is None
    finding = memory.padded(nets, 64)
    assert finding is not None
    assert "9.1 times the networks" in finding.problem


def test_a_gpu_that_is_too_small_is_an_error_and_a_nearly_full_one_a_warning() -> None:
    need = memory.needs(ModelBytes(100 * MB, 100 * MB, 200 * MB, 100 * MB), 10 * MB, 50)
    assert sum(need.values()) == 1000 * MB
    assert memory.too_little_on_device(need, 2000 * MB, 600 * MB) is None
    finding = memory.too_little_on_device(need, 1100 * MB, 600 * MB)
    assert finding is not None
    assert finding.level == "warning"
    finding = memory.too_little_on_device(need, 900 * MB, 600 * MB)
    assert finding is not None
    assert finding.level == "error"
    assert "1.0 GB of its GPU's memory, 0.5 GB of them for the activations" in finding.problem
    assert finding.remedy.endswith("train.activation_checkpointing=true, or train.parallel=fsdp")
    finding = memory.too_little_on_device(need, 500 * MB, 600 * MB)
    assert finding is not None
    assert "fsdp" not in finding.remedy


def test_recomputed_activations_are_fewer(runtime: Runtime) -> None:
    def measured(*words: str) -> int:
        experiment = CASES["ddpm"].experiment(*words)
        stage = experiment.stage.build(SHAPE, {})
        return memory.activations_per_sample(experiment, stage, SHAPE, runtime) or 0

    assert measured("train.activation_checkpointing=true") < 0.8 * measured()


def test_activations_that_take_long_to_measure_are_not_measured(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_SECONDS", -1.0)
    experiment = CASES["ddpm"].experiment()
    assert memory.activations_per_sample(experiment, experiment.stage.build(SHAPE, {}), SHAPE, runtime) is None


def test_the_memory_is_told_for_ddp_and_for_fsdp() -> None:
    whole, sharded = ModelBytes(*[4 * MB] * 4), ModelBytes(*[2 * MB] * 4)
    words = memory.in_words(whole, sharded, MB, JobSize(2, 2), 3)
    assert words.startswith("19.0 MB per process under ddp (parameters 4.0 MB, ")
    assert "activations of 3 3.0 MB), 11.0 MB under fsdp" in words
    alone = memory.in_words(whole, whole, None, JobSize(1, 1), 3)
    assert "fsdp" not in alone
    assert "activations not measured" in alone
    assert memory.can_be_measured(whole, 25 * MB)
    assert not memory.can_be_measured(whole, 24 * MB)
