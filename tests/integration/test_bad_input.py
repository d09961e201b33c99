"""Each mistake, through the real command, on one process and on two: one line with what, where and the remedy."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import CONFIG, HOME, SHARDS, TINY, command, refused, succeeds, train

Made = dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of a small model, shards changed behind their index, and shards without labels."""
    home = tmp_path_factory.mktemp("made")
    train(home / "run", "train.steps=1")
    shutil.copytree(SHARDS / "test", home / "changed")
    tar = home / "changed" / "test-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    (home / "images").mkdir()
    for i in range(4):
        Image.new("L", (28, 28), 60 * i).save(home / "images" / f"{i}.png")
    succeeds("pack", home / "images", home / "unlabelled")
    return {name: home / name for name in ("run", "changed", "unlabelled")}


CASES: dict[str, tuple[list[str], list[str]]] = {
    "an unknown key": (["train.setps=3"], ["error: unknown key train.setps", "did you mean train.steps?"]),
    "a wrong type": (["optimizer.lr=fast"], ["error: optimizer.lr", "number", "'fast'"]),
    "a missing shard": (["data.train=/absent/train.tar"], ["/absent/train.tar", "no such shards", "glob"]),
    "a changed shard": (
        ["data.train={changed}"],
        ["changed/test-000001.tar was changed after indexing", "diffpipe index"],
    ),
    "another model": (
        ["run.dir={run}", "stage.network.channels=16"],
        ["run/checkpoints/step-00000001", "stage.network.channels was 8 and is 16", "another run.dir"],
    ),
    "another seed": (["run.dir={run}", "seed=9"], ["seed was 0 and is 9", "restore the config"]),
    "an odd resolution": (
        ["data.resolution=27"],
        ["data.resolution 27 cannot be halved 1 time", "stage.network.channel_mult", "multiple of 2"],
    ),
    "no labels": (["data.train={unlabelled}"], ["unlabelled/", "no .cls member", "data.labels=false"]),
    "labels not asked for": (["data.labels=false"], ["stage.conditional", "data.labels=true"]),
}


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_refuses_it_in_one_line(tmp_path: Path, made: Made, case: str, processes: int) -> None:
    overrides, parts = CASES[case]
    words = [word.format(**made) for word in overrides]
    words = ["train", CONFIG, f"run.dir={tmp_path}", *TINY, "train.steps=3", *words]
    line = refused(*words, processes=processes, real=processes == 2 and case == "a changed shard")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sample", "/absent", "{out}"], ["/absent: no such directory"]),
        (["sample", "{run}/config.yaml", "{out}"], ["config.yaml: a file, and no directory", "give a run directory"]),
        (["sample", "{run}", "{out}", "--eta", "-1"], ["error: stage.sampler.eta is -1.0; give a number ≥ 0, ≤ 1"]),
        (["sample", "{run}", "{out}", "--steps", "2000"], ["steps are 2000", "1 to 1000"]),
        (["sample", "{run}", "{out}", "--label", "10"], ["error: label 10", "0 to 9"]),
        (["sample", "{run}", "{out}", "--n", "0"], ["--n 0"]),
        (["eval", "{run}", "--reference", "/absent"], ["/absent", "there is nothing of this name"]),
        (
            ["eval", "{run}", "--reference", "{run}"],
            ["a run, and no images", "give images, such as those it has sampled"],
        ),
        (["eval", "{run}", "--reference", "{unlabelled}", "--metrics", "fids"], ["'fids'", "known: fd_efficientnet"]),
        (["eval", "{run}", "--reference", "{unlabelled}", "--n", "1"], ["n is 1", "at least 2"]),
        (
            ["eval", "{run}", "--reference", "{unlabelled}", "--floor", "{unlabelled}", "--n", "1000"],
            ["4 images, fewer than 1000"],
        ),
        (["export", "{changed}", "{out}"], ["changed: no checkpoint in it"]),
    ],
)
def test_the_other_commands_refuse_it_in_one_line(
    tmp_path: Path, made: Made, words: list[str], parts: list[str]
) -> None:
    line = refused(*(word.format(out=tmp_path / "out", **made) for word in words))
    for part in parts:
        assert part in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_while_training_stops_both_processes_and_is_named(tmp_path: Path, workers: int) -> None:
    shutil.copytree(SHARDS / "test", tmp_path / "shards")
    words = [
        f"run.dir={tmp_path}/run",
        f"data.train={tmp_path}/shards",
        f"data.workers={workers}",
        "train.steps=100000",
    ]
    launched = command("train", CONFIG, *TINY, *words, "checkpoint.every=0", processes=2)
    with subprocess.Popen(launched, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        journal = tmp_path / "run" / "metrics.jsonl"
        while not (journal.exists() and journal.read_text()):
            assert launcher.poll() is None
            time.sleep(0.1)
        with (tmp_path / "shards" / "test-000001.tar").open("r+b") as tar:
            for offset in range(600, 2_000_000, 1000):  # some byte of nearly every image
                tar.seek(offset)
                tar.write(b"\xff")
        _, said = launcher.communicate(timeout=300)
    assert launcher.returncode != 0
    (line, *_) = [line for line in said.splitlines() if line.startswith("diffpipe train: error: step ")]
    assert "test-000001.tar: " in line
    assert "was changed after indexing" in line


def test_scores_during_training_are_refused_where_nothing_is_generated(tmp_path: Path) -> None:
    config = HOME / "configs" / "fashion_mnist" / "autoencoder.yaml"
    line = refused("train", config, f"run.dir={tmp_path}", "eval.every=10")
    assert "stage.kind autoencoder generates none; set eval.every=0" in line
