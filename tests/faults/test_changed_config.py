"""A changed config: a resume refuses it and lists the changes, unless run.allow_changes allows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.commands import CONFIG, TINY, metrics, refused, seen, tensors, train
from tests.support.training_jobs import checkpoint_steps, train_fails, train_to_end

LR = "optimizer.lr=0.002"  # configs/fashion_mnist/ddpm.yaml: 0.001


@pytest.fixture
def run(tmp_path: Path) -> Path:
    train_to_end(tmp_path, "train.steps=2")
    return tmp_path


def files(run: Path) -> dict[Path, int]:
    """The modification time of each file, except the lock, which every job writes."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


def test_another_model_is_refused_whatever_changes_are_allowed(run: Path) -> None:
    before = files(run)
    for words, difference in [
        (["stage.network.channels=16"], "stage.network.channels was 8 and is 16"),
        (["data.resolution=16"], "data.resolution was 8 and is 16"),
        (["stage.conditional=false"], "stage.conditional was True and is False"),
    ]:
        for allowed in ("[]", "[stage]", "[stage,data,optimizer]"):
            error = train_fails(run, "train.steps=4", *words, f"run.allow_changes={allowed}")
            assert f"{run}/checkpoints/step-00000002 is of another model: {difference};" in error
            assert "run.allow_changes" not in error
    assert files(run) == before


@pytest.mark.parametrize("processes", [0, 2])
def test_other_changes_are_refused_unless_allowed(run: Path, processes: int) -> None:
    changed = [LR, "seed=3", "ema.decay=0.9", "data.flip=true"]
    keys = ["data.flip", "ema.decay", "optimizer.lr", "seed"]
    changes = [
        "data.flip was False and is True",
        "ema.decay was 0.999 and is 0.9",
        "optimizer.lr was 0.001 and is 0.002",
        "seed was 0 and is 3",
    ]
    error = train_fails(run, "train.steps=4", *changed, processes=processes)
    assert f"{run}/checkpoints/step-00000002 is of another experiment: {', '.join(changes)};" in error
    assert f"run.allow_changes=[{','.join(keys)}]" in error
    # Where some are allowed, the error lists the others, and the complete option.
    error = train_fails(run, "train.steps=4", *changed, "run.allow_changes=[seed,optimizer]", processes=processes)
    assert f"is of another experiment: {', '.join(changes[:2])};" in error
    assert "run.allow_changes=[seed,optimizer,data.flip,ema.decay]" in error
    assert checkpoint_steps(run) == [2]

    stderr = train_to_end(run, "train.steps=4", *changed, f"run.allow_changes=[{','.join(keys)}]", processes=processes)
    for change in changes:
        assert stderr.count(f"{change}, as run.allow_changes says\n") == 1
    assert metrics(run)[3]["lr"] == pytest.approx(0.002 * 3 / 100)  # in the warm-up
    # From now on, this is the run's config.
    assert "as run.allow_changes says" not in train_to_end(run, "train.steps=5", *changed, processes=processes)
    assert "is of another experiment" in train_fails(run, "train.steps=6", processes=processes)


def test_each_change_alone_is_refused(run: Path) -> None:
    for word, key in [
        (LR, "optimizer.lr"),
        ("seed=3", "seed"),
        ("ema.decay=0.9", "ema.decay"),
        ("data.flip=true", "data.flip"),
        ("optimizer.clip=2", "optimizer.clip"),
        ("data.shuffle_window=64", "data.shuffle_window"),
        ("optimizer.lr_factors={denoiser: 2}", "optimizer.lr_factors.denoiser"),
    ]:
        error = train_fails(run, "train.steps=3", word)
        assert "is of another experiment: " in error
        assert f"{key} was " in error
        assert f"run.allow_changes=[{key}]" in error


def test_an_allowed_change_takes_effect_from_that_step_on(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first update with twice the learning rate is twice as long, from the same weights."""
    changed = tmp_path_factory.mktemp("changed")
    train_to_end(changed, "train.steps=2")
    train_to_end(run, "train.steps=3")
    train_to_end(changed, "train.steps=3", LR, "run.allow_changes=[optimizer.lr]")
    before = tensors(run / "checkpoints" / "step-00000002")
    slow, fast = (tensors(where / "checkpoints" / "step-00000003") for where in (run, changed))
    moved = 0
    for name, tensor in before.items():
        if name.startswith("net."):
            np.testing.assert_allclose(fast[name] - tensor, 2 * (slow[name] - tensor), rtol=1e-2, atol=5e-7)
            moved += int(np.abs(slow[name] - tensor).max() > 1e-5)
        elif name.startswith("optimizer."):
            assert np.array_equal(fast[name], slow[name]), name
    assert moved > 10


def test_what_does_not_belong_to_the_experiment_may_change_freely(run: Path) -> None:
    words = ["train.accumulate=2", "train.precision=fp32", "checkpoint.every=1", "sample.n=3", "train.log_every=2"]
    words += ["data.workers=1", "train.timeout=60", "stage.sampler.steps=2", "train.non_finite=skip"]
    assert "was " not in train_to_end(run, "train.steps=4", *words, processes=2)
    assert checkpoint_steps(run)[-1] == 4


def test_another_batch_size_continues_at_the_same_position_of_the_stream(
    run: Path, uninterrupted: Callable[[int], Path]
) -> None:
    stderr = train_to_end(run, "train.steps=4", "data.batch_size=12")
    assert "data.batch_size was 8 and is 12, from position 16 on\n" in stderr
    train_to_end(run, "train.steps=5", processes=2)
    stream = {position: key for batch in seen(uninterrupted(0)).values() for position, key in batch.items()}
    sizes = [8, 8, 12, 12, 8]
    for step, batch in seen(run).items():
        begin = sum(sizes[:step])
        assert batch == {position: stream[position] for position in range(begin, begin + sizes[step])}
    assert [line["images"] for line in metrics(run).values()] == [8, 16, 28, 40, 48]


def test_a_changed_base_file_is_a_changed_key(tmp_path: Path) -> None:
    base, config, run = tmp_path / "base.yaml", tmp_path / "config.yaml", tmp_path / "run"
    base.write_text(CONFIG.read_text())
    config.write_text("defaults: base.yaml\ndata:\n  workers: 0\n")
    train(run, "train.steps=2", config=config)
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert "defaults" not in resolved
    assert (resolved["data"]["workers"], resolved["optimizer"]["lr"]) == (0, 0.001)
    base.write_text(base.read_text().replace("lr: 1.0e-3", "lr: 2.0e-3"))
    error = refused("train", config, *TINY, f"run.dir={run}", "train.steps=4")
    assert f"{run}/checkpoints/step-00000002 is of another experiment: optimizer.lr was 0.001 and is 0.002;" in error
    train(run, "train.steps=4", "run.allow_changes=[optimizer.lr]", config=config)


def test_a_base_file_that_is_missing_is_refused_with_the_files_that_lead_to_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("defaults: base.yaml\n")
    error = refused("train", config, f"run.dir={tmp_path}/run")
    assert f"error: {config} → {tmp_path}/base.yaml: cannot read the config (No such file or directory)" in error
    assert f"; correct `defaults` in {config}" in error
    assert not (tmp_path / "run").exists()
