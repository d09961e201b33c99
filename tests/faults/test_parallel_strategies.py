"""A run that switches between DDP, FSDP2 and HSDP when it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.checkpoint_tensors import consolidated, parts
from tests.support.commands import CONFIG, SHARDS, diffpipe, metrics, seen, succeeds
from tests.support.training_jobs import SMALL, checkpoint_steps, train_fails, train_to_end

# Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
CALM = ("train.precision=fp32", "optimizer.eps=1e-3", "optimizer.warmup=0", "train.accumulate=2")
HSDP = ("train.parallel=hsdp", "train.shard_size=2")
# One more step that moves nothing: neither the weights nor their average.
FROZEN = ("optimizer.lr=1e-30", "ema.decay=0.9999999999999999", "ema.power=30", "run.allow_changes=[optimizer,ema]")


def last(run: Path) -> Path:
    return run / "checkpoints" / f"step-{checkpoint_steps(run)[-1]:08d}"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, two with each strategy; all its checkpoints are kept."""
    run = tmp_path_factory.mktemp("moved")
    strategies = [(2, ["train.parallel=ddp"]), (2, ["train.parallel=fsdp"]), (4, [*HSDP]), (2, ["train.parallel=ddp"])]
    for i, (processes, strategy) in enumerate(strategies):
        stderr = train_to_end(
            run, *CALM, *strategy, f"train.steps={2 * i + 2}", "checkpoint.keep_last=9", processes=processes
        )
        assert (f"resuming from {run}/checkpoints/step-{2 * i:08d}" in stderr) == (i > 0)
    return run


def test_a_run_that_switches_from_ddp_to_fsdp_to_hsdp_and_back_equals_one_with_ddp(moved: Path, tmp_path: Path) -> None:
    train_to_end(tmp_path, *CALM, "train.steps=8", "checkpoint.every=2", "checkpoint.keep_last=9", processes=2)
    assert seen(moved) == seen(tmp_path)
    losses = {step: line["loss"] for step, line in metrics(tmp_path).items()}
    assert {step: line["loss"] for step, line in metrics(moved).items()} == pytest.approx(losses, rel=1e-4)
    assert checkpoint_steps(moved) == [2, 4, 6, 8]
    for step in checkpoint_steps(moved):
        actual, uninterrupted = (consolidated(run / "checkpoints" / f"step-{step:08d}") for run in (moved, tmp_path))
        assert actual.keys() == uninterrupted.keys()
        assert {name.partition(".")[0] for name in actual} == {"net", "ema", "optimizer"}
        for name, tensor in uninterrupted.items():
            assert actual[name] == pytest.approx(tensor, abs=2e-4), (step, name)


def sharded(checkpoint: Path) -> dict[str, list[str]]:
    """The files of each tensor that is in more than one."""
    files: dict[str, list[str]] = {}
    for part in parts(checkpoint):
        files.setdefault(part.name, []).append(part.file)
    return {name: where for name, where in files.items() if len(where) > 1}


def test_each_process_writes_its_share_of_a_checkpoint(moved: Path) -> None:
    names = [f"rank-{rank:05d}.safetensors" for rank in range(4)]
    for step, divided, ranks in [(2, False, 2), (4, True, 2), (6, True, 4), (8, False, 2)]:
        checkpoint = moved / "checkpoints" / f"step-{step:08d}"
        assert sorted(path.name for path in checkpoint.glob("*.safetensors")) == names[:ranks]
        split = sharded(checkpoint)
        assert bool(split) == divided
        if divided:
            assert {name.partition(".")[0] for name in split} == {"net", "ema", "optimizer"}
            assert {len(where) for where in split.values()} == {2}
            held = dict.fromkeys(names[:ranks], 0)
            for part in parts(checkpoint):
                held[part.file] += part.values.nbytes
            assert max(held.values()) < 1.2 * sum(held.values()) / ranks, "replicas share the work of writing"


@pytest.mark.parametrize("step", [4, 6])
def test_one_process_exports_the_whole_of_a_sharded_checkpoint(moved: Path, step: int, tmp_path: Path) -> None:
    checkpoint = moved / "checkpoints" / f"step-{step:08d}"
    expected = consolidated(checkpoint)
    for part, words in (("ema", []), ("net", ["--raw"])):
        succeeds("export", checkpoint, tmp_path / part, *words)
        exported = load_file(tmp_path / part / "denoiser.safetensors")
        prefix = f"{part}.denoiser."
        assert exported.keys() == {name.removeprefix(prefix) for name in expected if name.startswith(prefix)}
        for name, tensor in exported.items():
            assert np.array_equal(tensor, expected[prefix + name]), name


def test_a_sharded_run_samples_scores_and_saves_as_an_unsharded_one(moved: Path, tmp_path: Path, few: Path) -> None:
    """Both take a step that changes nothing, from one checkpoint."""
    shown = ["sample.every=1", "sample.n=20", "eval.every=1", "eval.n=12", "eval.metrics=[fd_efficientnet_lite0]"]
    for strategy in ("ddp", "fsdp"):
        (tmp_path / strategy / "checkpoints").mkdir(parents=True)
        start = tmp_path / strategy / "checkpoints" / "step-00000006"
        start.symlink_to(moved / "checkpoints" / start.name)
        words = [*CALM, *FROZEN, *shown, f"data.test={few}", f"train.parallel={strategy}", "train.steps=7"]
        train_to_end(tmp_path / strategy, *words, processes=2)
    ddp, fsdp = tmp_path / "ddp", tmp_path / "fsdp"
    assert sharded(last(fsdp))
    assert not sharded(last(ddp))
    before = consolidated(moved / "checkpoints" / "step-00000006")
    for run in (ddp, fsdp):
        after = consolidated(last(run))
        for name in before:
            if name.startswith(("net.", "ema.")):
                assert np.array_equal(after[name], before[name]), name
    picture = "samples/step-00000007.png"
    assert (ddp / picture).read_bytes() == (fsdp / picture).read_bytes()
    score = [json.loads(next((run / "scores").glob("train-step-00000007-*.json")).read_text()) for run in (ddp, fsdp)]
    assert score[0]["scores"] == score[1]["scores"]
    for processes in (0, 2):
        out = tmp_path / f"sampled-{processes}"
        succeeds("sample", last(fsdp), out, "--n", 20, "--precision", "fp32", processes=processes)
        assert (out / "grid.png").read_bytes() == (ddp / picture).read_bytes()
    for run in (ddp, fsdp):
        succeeds("export", run, run / "exported")
    assert (ddp / "exported/denoiser.safetensors").read_bytes() == (fsdp / "exported/denoiser.safetensors").read_bytes()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty reference images."""
    out = tmp_path_factory.mktemp("few") / "shards"
    succeeds("pack", SHARDS / "test", out, "--resolution", 8, "--per-class", 4)
    return out


def test_a_job_launched_with_fsdp_is_sharded_or_refused(tmp_path: Path, uninterrupted: Callable[[int], Path]) -> None:
    launched = {"accelerate_use_fsdp": "true", "fsdp_version": "2"}
    train_to_end(tmp_path / "auto", "train.steps=2", processes=2, **launched)
    assert sharded(last(tmp_path / "auto"))
    assert seen(tmp_path / "auto") == {step: seen(uninterrupted(2))[step] for step in (0, 1)}
    error = train_fails(tmp_path / "ddp", "train.steps=2", "train.parallel=ddp", processes=2, **launched)
    assert "accelerate launch was started with FSDP, and train.parallel is ddp" in error
    assert not list((tmp_path / "ddp").rglob("step-*"))
    train_to_end(tmp_path / "hsdp", "train.steps=1", *HSDP, processes=2, **launched)
    assert sharded(last(tmp_path / "hsdp"))


def test_a_shard_size_that_does_not_divide_the_processes_is_refused(tmp_path: Path) -> None:
    words = ["train", CONFIG, f"run.dir={tmp_path}", *SMALL, "train.parallel=hsdp", "train.shard_size=2"]
    ended = diffpipe(*words, "train.steps=1", processes=3)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "3 processes cannot be divided into copies of 2 each" in ended.stderr
    assert checkpoint_steps(tmp_path) == []
