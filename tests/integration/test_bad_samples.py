"""Shards with images that cannot be decoded: a run does without so many, or stops at the first, alone and as two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data.index.write_index import write_index
from tests.support.commands import CONFIG, HOME, TINY, diffpipe, metrics, seen, tensors, train
from tests.support.tars import png, random_pixels, write_tar

SAMPLES = 40
CUT, PAGE = 11, 23  # the keys of an image that is cut short and of a web page
WORDS = ["train.steps=6", "train.precision=fp32", "optimizer.eps=1e-3", "train.record_samples=true"]
WORDS += ["checkpoint.every=1", "checkpoint.keep_last=9"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    members: dict[str, bytes] = {}
    for i in range(SAMPLES):
        whole = png(random_pixels(i, (28, 28)))
        members[f"{i:05d}.png"] = {CUT: whole[:400], PAGE: b"<html>404</html>"}.get(i, whole)
        members[f"{i:05d}.cls"] = str(i % 3).encode()
    half = list(members.items())[: SAMPLES // 2 * 2]
    write_tar(folder / "a.tar", half)
    write_tar(folder / "b.tar", list(members.items())[len(half) :])
    write_index(folder)
    return folder


def met(run: Path) -> dict[int, int]:
    """The step in which each of the two is first seen."""
    first: dict[int, int] = {}
    for step, keys in sorted(seen(run).items()):
        for key in sorted(map(int, keys.values())):
            if key in (CUT, PAGE):
                first.setdefault(key, step)
    return first


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("alone")
    return run, train(run, f"data.train={shards}", "data.max_bad_samples=2", *WORDS)


def test_one_process_goes_on_without_them(alone: tuple[Path, str]) -> None:
    run, said = alone
    first = met(run)
    assert first.keys() == {CUT, PAGE}
    told = [line for line in said.splitlines() if "warning: " in line]
    assert len(told) == 2
    for key, why in ((CUT, "cut short"), (PAGE, "no image begins with b'<html>404</html>'")):
        (line,) = [line for line in told if f"{key:05d}: not an image that can be decoded" in line]
        assert f"warning: step {first[key]}, rank 0: " in line
        assert why in line
    for step, line in metrics(run).items():
        assert line.get("bad", 0) == sum(step > before for before in first.values())
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert [f"/b.tar: {PAGE:05d}: " in name or f"/a.tar: {CUT:05d}: " in name for name in state["bad_samples"]] == [
        True,
        True,
    ]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_see_and_learn_the_same(
    tmp_path: Path, shards: Path, alone: tuple[Path, str], parallel: str
) -> None:
    words = [*WORDS, f"train.parallel={parallel}", "train.accumulate=2"]
    said = train(tmp_path, f"data.train={shards}", "data.max_bad_samples=2", *words, processes=2)
    assert said.count("warning: step ") == 2
    run, _ = alone
    assert seen(tmp_path) == seen(run)
    for step, line in metrics(run).items():
        for key in ("loss", "grad_norm"):
            assert metrics(tmp_path)[step][key] == pytest.approx(line[key], rel=1e-3), (step, key)
    ours, theirs = (tensors(place / "checkpoints" / "step-00000006") for place in (tmp_path, run))
    for name, tensor in theirs.items():
        if name.startswith(("net.", "ema.")):
            assert ours[name] == pytest.approx(tensor, abs=1e-6), name


@pytest.mark.parametrize("processes", [0, 2])
def test_the_first_one_stops_a_run_that_may_have_none(
    tmp_path: Path, shards: Path, alone: tuple[Path, str], processes: int
) -> None:
    step, key = min((step, key) for key, step in met(alone[0]).items())
    words = ["train", CONFIG, *TINY, *WORDS, f"run.dir={tmp_path}", f"data.train={shards}"]
    result = diffpipe(*words, processes=processes)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if f"train: error: step {step}, rank " in line]
    assert f".tar: {key:05d}: not an image that can be decoded" in line


@pytest.mark.parametrize("processes", [0, 2])
def test_one_too_many_ends_all_processes_and_a_resume_remembers(
    tmp_path: Path, shards: Path, alone: tuple[Path, str], processes: int
) -> None:
    first, second = sorted(met(alone[0]).values())
    assert first < second  # else the shards or the seed must be others
    words = ["train", CONFIG, *TINY, *WORDS, f"run.dir={tmp_path}", f"data.train={shards}", "data.max_bad_samples=1"]
    assert diffpipe(*words, f"train.steps={first + 1}", processes=processes).returncode == 0
    for _ in range(2):
        result = diffpipe(*words, processes=processes)
        assert result.returncode != 0
        (line,) = {line for line in result.stderr.splitlines() if line.startswith("diffpipe train: error: ")}
        assert "2 samples are bad and data.max_bad_samples is 1: " in line
        assert f"{CUT:05d}: " in line
        assert f"{PAGE:05d}: " in line
        assert max(metrics(tmp_path)) == second
    train(tmp_path, f"data.train={shards}", *WORDS, "data.max_bad_samples=2", processes=processes)


def test_latents_are_measured_on_the_images_that_there_are(tmp_path: Path, shards: Path) -> None:
    """The zeros in the place of a bad sample would draw the mean towards that of a black image."""
    good, home = tmp_path / "good", HOME / "configs" / "fashion_mnist"
    good.mkdir()
    images = {f"{i:05d}.png": png(random_pixels(i, (28, 28))) for i in range(SAMPLES) if i not in (CUT, PAGE)}
    write_tar(good / "a.tar", [*images.items()])
    write_index(good)
    words = ["data.max_bad_samples=2", "data.labels=false", "train.steps=1"]
    train(tmp_path / "vae", f"data.train={shards}", *words, config=home / "latent_vae.yaml")
    words += [f"stage.codec.run={tmp_path}/vae", "stage.conditional=false"]
    scales = []
    for data in (shards, good):
        run = tmp_path / f"on_{data.name}"
        train(run, f"data.train={data}", *words, config=home / "latent_ddpm.yaml")
        scales.append(tensors(next((run / "checkpoints").glob("step-*")))["net.latent_scale.mean"])
    assert scales[0] == pytest.approx(scales[1], abs=0.02)


@pytest.mark.parametrize("processes", [0, 2])
def test_where_none_is_bad_not_a_bit_depends_on_how_many_may_be(tmp_path: Path, processes: int) -> None:
    for most in (0, 3):
        train(tmp_path / str(most), f"data.max_bad_samples={most}", "train.steps=3", processes=processes)
    none, some = (tensors(tmp_path / str(most) / "checkpoints" / "step-00000003") for most in (0, 3))
    assert none.keys() == some.keys()
    assert all(np.array_equal(none[name], some[name]) for name in none)
