"""`diffpipe compress` and `decompress` through the real commands: byte for byte, and the same file on two processes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch

import diffpipe
from diffpipe.coding import compressed_file
from diffpipe.coding.compressed_file import read_compressed, write_compressed
from diffpipe.data.index import shard_set
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.train.runtime import Precision
from tests.support.commands import HOME, refused, succeeds, train
from tests.support.runs import indexed_shards

FASHION = HOME / "configs" / "fashion_mnist"
KINDS = {
    "vae": (),
    "ddpm": ("stage.schedule.steps=8",),
    "autoregressive": ("train.minutes=null",),
    "flow": (),
    "tarflow": (),
}
N = 13


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return indexed_shards(tmp_path_factory.mktemp("shards"), 8, N - 8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    for kind, words in KINDS.items():
        train(home / kind, "train.steps=2", "data.resolution=8", *words, config=FASHION / f"{kind}.yaml")
    return {kind: home / kind for kind in KINDS}


@pytest.fixture(scope="module")
def files(runs: dict[str, Path], shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind, made by one process with the default number of threads."""
    home = tmp_path_factory.mktemp("files")
    for kind, run in runs.items():
        text = succeeds("compress", run, shards, home / f"{kind}.dpi", "--block", 5, "--batch", 3)
        assert f"{N} images, {(home / f'{kind}.dpi').stat().st_size:,} bytes" in text
        assert all(f"{name}  " in text for name in ("on disk", "nll", "PNG", "WebP", "JPEG XL"))
    return {kind: home / f"{kind}.dpi" for kind in runs}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [0, 2])
def test_keys_labels_and_pixels_come_back(
    runs: dict[str, Path], files: dict[str, Path], shards: str, tmp_path: Path, kind: str, processes: int
) -> None:
    text = succeeds("decompress", files[kind], runs[kind], tmp_path / "out", processes=processes)
    assert f"{N} images: {tmp_path / 'out'}" in text
    before, after = (ShardImages(shard_set.load(str(place)), 1, None) for place in (shards, tmp_path / "out"))
    assert after.keys() == before.keys()
    assert torch.equal(after.labels(range(N)), before.labels(range(N)))
    assert torch.equal(after.images(range(N)), before.images(range(N)))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_same_bytes(
    runs: dict[str, Path], files: dict[str, Path], shards: str, tmp_path: Path, kind: str
) -> None:
    words = ("--block", 5, "--batch", 3, "--no-comparison", "--verify")
    succeeds("compress", runs[kind], shards, tmp_path / "two.dpi", *words, processes=2)
    assert (tmp_path / "two.dpi").read_bytes() == files[kind].read_bytes()


@pytest.mark.parametrize(("kind", "other"), [("vae", "ddpm"), ("flow", "tarflow")])
def test_damaged_files_and_other_runs_are_one_line(
    runs: dict[str, Path], files: dict[str, Path], tmp_path: Path, kind: str, other: str
) -> None:
    content, out = files[kind].read_bytes(), tmp_path / "out"
    cut, changed = tmp_path / "cut.dpi", bytearray(content)
    cut.write_bytes(content[:-10])
    assert "it ends too early" in refused("decompress", cut, runs[kind], out)
    changed[-10] ^= 1
    cut.write_bytes(changed)
    assert "block 2 has other bytes than were written" in refused("decompress", cut, runs[kind], out)
    assert "give the run that it was made with" in refused("decompress", files[kind], runs[other], out)
    assert "no such directory" in refused("decompress", files[kind], tmp_path / "none", out)
    assert not out.exists()


def test_a_file_of_another_precision_is_refused(runs: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    file = read_compressed(files["vae"])
    assert file.header.coded_on["precision"] == "float32"
    file.header.coded_on["precision"] = "bfloat16"
    write_compressed(tmp_path / "other.dpi", file)
    line = refused("decompress", tmp_path / "other.dpi", runs["vae"], tmp_path / "out")
    assert "was compressed with precision bfloat16, here float32" in line


def test_what_cannot_be_compressed_is_one_line(runs: dict[str, Path], shards: str, tmp_path: Path) -> None:
    out = tmp_path / "images.dpi"
    assert "compression resizes none" in refused("compress", runs["vae"], FASHION / "shards" / "test", out)
    assert "exists already" in refused("compress", runs["vae"], shards, tmp_path)
    train(tmp_path / "gan", "train.steps=2", "data.resolution=8", config=FASHION / "gan.yaml")
    assert "a run of stage.kind gan cannot compress" in refused("compress", tmp_path / "gan", shards, out)
    words = ("train.steps=2", "data.resolution=8", "stage.dequantization={kind: variational, steps: 1, hidden: 4}")
    train(tmp_path / "flow", *words, config=FASHION / "flow.yaml")
    line = refused("compress", tmp_path / "flow", shards, out)
    assert "stage.dequantization.kind=variational has no code of images" in line
    assert not out.exists()


def test_a_diffusion_codes_along_a_shorter_chain_that_the_file_names(
    runs: dict[str, Path], files: dict[str, Path], shards: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.dpi"
    text = succeeds("compress", runs["ddpm"], shards, short, "--steps", 4, "--verify")
    assert "of a chain of 4 steps" in text
    assert read_compressed(short).header.steps == 4
    assert read_compressed(files["ddpm"]).header.steps is None
    succeeds("decompress", short, runs["ddpm"], tmp_path / "out")
    before, after = (ShardImages(shard_set.load(str(place)), 1, None) for place in (shards, tmp_path / "out"))
    assert torch.equal(after.images(range(N)), before.images(range(N)))
    for kind, steps, words in (
        ("vae", 4, "steps is for a diffusion, and "),
        ("ddpm", 9, "the schedule has 8: ask for 2 to 8 steps"),
    ):
        assert words in refused("compress", runs[kind], shards, tmp_path / "none.dpi", "--steps", steps)


def test_the_header_names_the_run_and_the_machine(files: dict[str, Path]) -> None:
    content = files["ddpm"].read_bytes()
    start = compressed_file._PREFIX.size
    header = json.loads(zlib.decompressobj().decompress(content[start:]))
    assert header["stage"] == "ddpm"
    assert header["weights"] == "ema"
    assert len(header["checkpoint"]) == 64
    assert {"device", "processor", "precision", "torch"} <= header["coded_on"].keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_python_compresses_the_command_decompresses(
    runs: dict[str, Path], shards: str, tmp_path: Path, precision: Precision
) -> None:
    """A run in bfloat16 has another memory format on CPUs, which makes other bits in float32, too."""
    for kind in ("vae", "ddpm", "flow"):
        file = tmp_path / f"{kind}.dpi"
        with diffpipe.load(runs[kind], precision=precision, device="cpu") as run:
            run.compress(shards, file, n=4, compare=False, verify=True)
        assert "4 images" in succeeds("decompress", file, runs[kind], tmp_path / kind)
