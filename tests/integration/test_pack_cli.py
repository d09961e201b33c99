from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.__main__ import main
from diffpipe.data import labels, load
from tests.support.archives import cifar_pickles, write_cifar
from tests.support.commands import HOME, diffpipe, metrics, server, succeeds, train
from tests.support.fork_server import Command


def refused(*words: str | Path) -> str:
    """The one line of a command that has to fail."""
    result = diffpipe(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"diffpipe {words[0]}: error: ")
    return line


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_folder_is_packed_and_the_line_says_what_was_made(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "src" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "src" / name / f"{i}.png").write_bytes(png(i))
    (tmp_path / "src" / "dog" / "notes.txt").write_text("no image")
    words = ["pack", tmp_path / "src", tmp_path / "out", "--shard-samples", "4", "--per-class", "2", "--seed", "3"]
    result = diffpipe(*words, real=True)
    assert (result.returncode, result.stderr) == (0, "")
    shards = load(str(tmp_path / "out"))
    line, named, skipped = result.stdout.splitlines()
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert line == f"{tmp_path}/out: 1 shard, 4 samples, {size} bytes, fingerprint {shards.fingerprint}"
    assert named == f"{tmp_path}/src: labels: 0: cat, 1: dog"
    assert "skipped 1 file" in skipped
    assert shards.classes == ["cat", "dog"]
    assert "exists already" in refused("pack", tmp_path / "src", tmp_path / "out")


def test_of_a_launched_job_one_process_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(png(0))
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["pack", str(tmp_path / "src"), str(tmp_path / "out")]) == 0
        assert (tmp_path / "out").exists() == (rank == 0)


def test_idx_files_are_packed_with_the_names_of_their_classes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 5), dtype=np.uint8)
    (tmp_path / "i").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">III", 4, 5, 5) + pixels.tobytes())
    (tmp_path / "l").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + bytes([0, 1, 1, 0]))
    result = diffpipe("pack", tmp_path / "i", tmp_path / "out", "--labels", tmp_path / "l", "--classes", "left,right")
    assert (result.returncode, result.stderr) == (0, "")
    assert load(str(tmp_path / "out")).classes == ["left", "right"]


def test_shards_are_split_into_nine_classes_and_the_tenth(tmp_path: Path) -> None:
    fashion = Path(__file__).parents[2] / "configs" / "fashion_mnist" / "shards" / "test"
    # In this process: what starts as a command of its own is shown above.
    assert main(["pack", str(fashion), str(tmp_path / "nine"), "--leave-out", "3"]) == 0
    assert main(["pack", str(fashion / "test-000000.tar"), str(tmp_path / "tenth"), "--only", "3"]) == 0
    nine, tenth = load(str(tmp_path / "nine")), load(str(tmp_path / "tenth"))
    assert labels(nine, range(nine.total)).bincount().tolist() == [200, 200, 200, 0, 200, 200, 200, 200, 200, 200]
    assert set(labels(tenth, range(tenth.total)).tolist()) == {3}
    assert nine.classes == tenth.classes == load(str(fashion)).classes


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["--only", "10"], "--only 10: no such label"),
        (["--leave-out", "0,1,2,3,4,5,6,7,8,9"], "leave no images"),
        (["--classes", "a,b"], "--classes is for idx files"),
        (["--only", "1", "--leave-out", "2"], "--leave-out: not allowed with argument --only"),
        (["--only", "shoes"], "'shoes' is no list of labels"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], about: str
) -> None:
    fashion = Path(__file__).parents[2] / "configs" / "fashion_mnist" / "shards" / "test"
    try:
        status: object = main(["pack", str(fashion), str(tmp_path / "out"), *words])
    except SystemExit as stop:  # argparse ends the process itself
        status = stop.code
    assert status == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("diffpipe pack: error: ")
    assert about in line
    assert not (tmp_path / "out").exists()


def test_the_cifar_archive_packs_and_trains(tmp_path: Path) -> None:
    archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles())
    for split in ("train", "test"):
        succeeds("pack", archive, tmp_path / split, "--split", split)
    assert (load(str(tmp_path / "train")).total, load(str(tmp_path / "test")).total) == (100, 20)
    small = [f"data.train={tmp_path}/train", f"data.test={tmp_path}/test", "data.workers=0", "train.steps=2"]
    train(tmp_path / "run", *small, config=HOME / "configs" / "cifar10" / "ddpm.yaml")
    assert sorted(metrics(tmp_path / "run")) == [1, 2]


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    evil = b"cos\nsystem\n(S'touch " + str(flag).encode() + b"'\ntR."
    archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles() | {"batches.meta": evil})
    assert "would call os.system" in refused("pack", archive, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


def test_bad_files_are_skipped_with_a_warning_for_each(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(6):
        (tmp_path / "src" / f"{i}.png").write_bytes(b"<html>" if i == 2 else png(i))
    assert f"1 bad sample, more than --max-bad 0: (1) {tmp_path}/src/2.png" in refused(
        "pack", tmp_path / "src", tmp_path / "out"
    )
    result = diffpipe("pack", tmp_path / "src", tmp_path / "out", "--max-bad", "1", "--format", "webp")
    assert result.returncode == 0
    assert result.stdout.splitlines()[1] == f"{tmp_path}/src: skipped 1 bad sample"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"warning: skipped: {tmp_path}/src/2.png: not an image")


def test_a_split_by_group_makes_two_sets(tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / "src" / f"{i % 2}" / f"scan{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    words = ["--split-by", r"scan(\d+)", "--test-fraction", "0.5"]
    result = diffpipe("pack", tmp_path / "src", tmp_path / "out", *words)
    assert result.returncode == 0, result.stderr
    counts = [load(f"{tmp_path}/out/{part}").total for part in ("train", "test")]
    assert sum(counts) == 12
    *lines, named = result.stdout.splitlines()
    assert named == f"{tmp_path}/src: labels: 0: 0, 1: 1"
    for line, part, count in zip(lines, ("train", "test"), counts, strict=True):
        assert line.startswith(f"{tmp_path}/out/{part}: 1 shard, {count} samples, ")


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["--quality", "50"], "--quality is for --format jpeg and webp"),
        (["--format", "jpeg", "--quality", "0"], "0 is not 1 to 100"),
        (["--test-fraction", "0.5"], "--test-fraction is for --split-by"),
        (["--split-by", "group", "--test-fraction", "1"], "1 is not between 0 and 1"),
        (["--background", "#12345678"], "is no opaque colour"),
        (["--background", "purplish"], "is no opaque colour"),
        (["--labels", "x"], "--labels is for idx files"),
        (["--split", "test"], "--split is for"),
        (["--columns", "a"], "--columns is for"),
        (["--classes", "a,b"], "--classes is for idx files and labels files"),
        (["--workers", "-1"], "--workers: "),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], about: str
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(png(0))
    try:
        status: object = main(["pack", str(tmp_path / "src"), str(tmp_path / "out"), *words])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert about in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


class Packing:
    """A pack of a second's work by two processes, once its second shard has begun."""

    def __init__(self, home: Path):
        self.home, self.src, self.out = home, home / "src", home / "out"
        self.words = ["pack", self.src, self.out, "--format", "png", "--workers", "2", "--shard-samples", "20"]
        self.src.mkdir()
        for i in range(160):
            pixels = np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.src / f"{i}.bmp")

    def start(self) -> tuple[Command, list[int]]:
        """The command, and its processes: the one that packs, and its workers."""
        with (self.home / "said").open("w") as said:
            packing = server().start([*map(str, self.words)], HOME, os.environ, said, said)
        (main,) = children(packing.pid)
        deadline = time.monotonic() + 200
        while not (self.home / ".out.packing" / "whole" / "shard-000001.tar").exists():
            assert Path(f"/proc/{main}").exists()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = children(main)
        assert len(workers) == 2
        return packing, [main, *workers]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_pack_with_one_line_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    packing = Packing(tmp_path)
    command, processes = packing.start()
    for pid in processes if number == signal.SIGINT else processes[:1]:  # a terminal's signal reaches all of them
        os.kill(pid, number)
    assert command.wait(60) == 130
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert line == f"diffpipe pack: error: stopped by a signal; {packing.out} was not made, and nothing is left of it"
    assert gone(processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said", "src"]


def test_a_pack_that_is_killed_leaves_no_out_and_the_next_one_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    packing = Packing(tmp_path)
    command, processes = packing.start()
    assert "another process is packing it" in refused(*packing.words)
    os.kill(processes[0], signal.SIGKILL)
    assert command.wait(60) == -signal.SIGKILL
    assert gone(processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.packing", "said", "src"]
    succeeds(*packing.words)
    succeeds("pack", packing.src, tmp_path / "other", *packing.words[3:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "said", "src"]
    for path in packing.out.iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_tars_made_elsewhere_are_indexed_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{folder}.png").write_bytes(png(0))
        for i in range(2):
            subprocess.run(["tar", "-cf", f"{folder}/{i}.tar", f"{folder}.png"], check=True, cwd=tmp_path)
    result = diffpipe("index", tmp_path / "a", f"{tmp_path}/b/{{0,1}}.tar")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert load([f"{tmp_path}/a", f"{tmp_path}/b"]).total == 4

    tar = tmp_path / "a" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    assert str(tar) in refused("index", tmp_path / "a")
