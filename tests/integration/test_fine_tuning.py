"""Fine-tuning by the command: killed and resumed, at other world sizes and strategies, with and without adapters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.checkpoint_tensors import consolidated
from tests.support.commands import metrics, seen
from tests.support.training_jobs import (
    TrainingJob,
    assert_equals_uninterrupted,
    checkpoint_steps,
    train_fails,
    train_to_end,
)

pytestmark = pytest.mark.slow
# Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
CALM = ("train.precision=fp32", "optimizer.eps=1e-3", "optimizer.warmup=0", "stage.network.attention=[4]")
LORA = ("lora.rank=2", "lora.alpha=4", "init.fresh=[denoiser.label]", "stage.network.dropout=0.1")
STEPS = ("train.steps=6", "checkpoint.every=1", "checkpoint.keep_last=9")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("source") / "run"
    train_to_end(run, *CALM, "train.steps=2")
    return run


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    stderr = train_to_end(run, *CALM, *LORA, *STEPS, f"run.init={source}")
    assert re.search(r"denoiser \S+( M)? \(\S+( M)? trained\)", stderr)
    return run


def test_killed_and_resumed_without_its_source_it_has_the_bits_of_an_uninterrupted_run(
    source: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    words = [*CALM, *LORA, *STEPS, f"run.init={moved}"]
    job = TrainingJob(tmp_path / "run", *words)
    job.wait_until_step(3)
    job.kill_all()
    job.wait()
    shutil.rmtree(moved)
    assert "resuming from" in train_to_end(tmp_path / "run", *words)
    assert_equals_uninterrupted(tmp_path / "run", uninterrupted, 6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_same_steps_and_one_goes_on(
    parallel: str, source: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, words = tmp_path / "run", [*CALM, *LORA, *STEPS, f"run.init={source}"]
    train_to_end(run, *words, f"train.parallel={parallel}", "train.steps=3", processes=2)
    train_to_end(run, *words, f"train.parallel={parallel}", "train.steps=5", processes=2)
    train_to_end(run, *words)
    assert checkpoint_steps(run) == [1, 2, 3, 4, 5, 6]
    assert seen(run) == seen(uninterrupted)
    losses = {step: line["loss"] for step, line in metrics(uninterrupted).items()}
    assert {step: line["loss"] for step, line in metrics(run).items()} == pytest.approx(losses, rel=1e-3)
    for step in (1, 6):
        actual, expected = (consolidated(home / "checkpoints" / f"step-{step:08d}") for home in (run, uninterrupted))
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            if name.startswith("net.") and ".lora_" not in name and "label" not in name:
                assert actual[name].tobytes() == tensor.tobytes(), name
            assert actual[name] == pytest.approx(tensor, abs=1e-3), (step, name)


def test_wrong_uses_are_one_line_and_leave_no_checkpoint(source: Path, tmp_path: Path) -> None:
    pickle, text, empty = tmp_path / "weights.pt", tmp_path / "weights.safetensors", tmp_path / "empty"
    pickle.write_bytes(b"\x80\x04 not read")
    text.write_text("hello")
    empty.mkdir()
    init = f"run.init={source}"
    wrong = {
        (f"run.init={tmp_path / 'missing'}",): "missing: no such file or folder; give a run directory, one of its",
        (f"run.init={empty}",): "model_index.json: No such file or directory; give a folder that the save_pretrained",
        (f"run.init={pickle}",): "a pickle, which can run any code when it is read",
        (f"run.init={text}",): "not a safetensors file",
        (init, "stage.network.channels=16"): "config: stage.network.channels was 8 and is 16",
        (init, "init.networks=[vae]"): "init.networks names vae",
        ("lora.rank=2",): "lora trains adapters of the weights of run.init, which is null; set run.init",
        (init, "lora.rank=0"): "lora.rank",
        (init, "lora.layers=[conv]"): "lora.layers names conv, and denoiser has emb, out, qkv",
        (init, "lora.rank=2", "stage.network.blocks=3", "init.strict=false"): "lora freezes all weights but those of ",
    }
    for i, (words, message) in enumerate(wrong.items()):
        line = train_fails(tmp_path / f"run-{i}", *CALM, "train.steps=2", *words)
        assert message in line
        assert not list(tmp_path.glob("run-*/checkpoints/step-*"))


def test_a_resume_cannot_start_from_other_weights(source: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    words = [*CALM, *LORA, "train.steps=7"]
    assert "run.init out to resume it" in train_fails(run, *words, f"run.init={tmp_path}").replace(" and init", "")
    other = [word.replace("rank=2", "rank=3") for word in words]
    line = train_fails(run, *other, f"run.init={source}")
    assert "is of another model: lora.rank was 2 and is 3" in line
    assert checkpoint_steps(run) == checkpoint_steps(uninterrupted)
