from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.__main__ import main
from diffpipe.data import labels, load
from tests.integration.commands import diffpipe


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
    line, skipped = result.stdout.splitlines()
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert line == f"{tmp_path}/out: 1 shards, 4 samples, {size} bytes, fingerprint {shards.fingerprint}"
    assert "skipped 1 file" in skipped
    assert shards.classes == ["cat", "dog"]
    assert "exists already" in refused("pack", tmp_path / "src", tmp_path / "out")


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
