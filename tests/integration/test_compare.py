"""`diffpipe compare` through the real command: its numbers of tiny runs are those of the runs' own files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from tests.support.commands import HOME, diffpipe, metrics, refused, train

FASHION = HOME / "configs" / "fashion_mnist"
SMALL = ["data.resolution=8", "train.steps=4"]
FORMATS = ["PNG", "WebP", "JPEG XL"]
OPTIONS = ["--n", "8", "--nll-n", "6", "--metrics", "fd_efficientnet_lite0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional DDPM, a VAE, a flow and an autoencoder, and a reference: three images of each of ten classes."""
    home = tmp_path_factory.mktemp("runs")
    for i in range(30):
        folder = home / "images" / str(i % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{i}.png")
    pack(FolderSource(home / "images"), home / "reference")
    train(home / "ddpm", *SMALL)
    train(home / "vae", *SMALL, config=FASHION / "vae.yaml")
    train(home / "flow", *SMALL, config=FASHION / "flow.yaml")
    train(home / "coder", "data.resolution=16", "train.steps=1", config=FASHION / "autoencoder.yaml")
    return home


def compare(runs: Path, out: Path, *words: object, processes: int = 0) -> tuple[dict[str, Any], str, str]:
    """The JSON, stdout and stderr."""
    options = [*OPTIONS, "--reference", runs / "reference", "--out", out]
    result = diffpipe("compare", *words, *options, processes=processes)
    assert result.returncode == 0, result.stderr
    return json.loads((out / "compare.json").read_text()), result.stdout, result.stderr


def test_each_row_has_its_runs_numbers_and_scores_are_computed_once(runs: Path, tmp_path: Path) -> None:
    rows = ["--row", "ddpm", runs / "ddpm", "vlb_steps=2"]
    rows += ["--row", "slow ddpm", runs / "ddpm", "sampler=ancestral", "steps=5", "vlb_steps=2"]
    rows += ["--row", "vae", runs / "vae"]
    first, printed, _ = compare(runs, tmp_path / "one", *rows)
    two_steps, slow, vae = first["families"]
    assert [row["name"] for row in first["families"]] == ["ddpm", "slow ddpm", "vae"]
    for row in first["families"]:
        file = json.loads(Path(row["score_file"]).read_text())
        assert Path(row["score_file"]).parent == Path(row["run"]) / "scores"
        assert row["scores"] == file["scores"]
        assert first["floor"] == pytest.approx(file["floor"])
        assert row["checkpoint"] == file["protocol"]["generated"]["checkpoint"]
        assert row["sampler"] == file["protocol"]["generated"]["sampler"]
        assert file["protocol"]["reference"]["fingerprint"] == first["protocol"]["reference"]["fingerprint"]
        assert not row["reused"]
        assert (row["step"], row["images_seen"]) == (4, 32)
        rates = [line["images_per_second"] for line in metrics(Path(row["run"])).values()]
        assert row["training"]["images_per_second"] == statistics.median(rates[1:])
        assert row["training"]["seconds"] == pytest.approx(32 / statistics.median(rates[1:]))
        assert row["sampling"]["images_per_second"] > 0
        assert row["bits_per_dim"]["kind"] == "bound"
        assert row["bits_per_dim"]["n"] == 6
        assert f"| {row['name']} | {row['stage']} |" in printed
    assert [row["sampling"]["evaluations"] for row in first["families"]] == [3, 5, 1]
    assert two_steps["scores"] != slow["scores"]
    assert two_steps["parameters"]["generating"] == two_steps["parameters"]["all"]
    assert vae["parameters"]["generating"] < vae["parameters"]["all"]
    assert vae["reconstruction"]["value"] > 0
    assert slow["reconstruction"] is None
    assert slow["missing"]["reconstruction"] == "stage.kind ddpm reconstructs no images"

    page = (tmp_path / "one" / "index.html").read_text()
    assert all(f'<th scope="row">{name} ' in page for name in ("ddpm", "slow ddpm", "vae"))
    assert page.count("data:image/png;base64,") == 4  # the real images and three families
    assert (tmp_path / "one" / "table.md").read_text() == printed
    with Image.open(tmp_path / "one" / "samples.png") as grid:
        assert grid.width > 20 * 56
        assert 4 * 56 < grid.height < 6 * 56

    second, _, stderr = compare(runs, tmp_path / "two", *rows, processes=2)
    assert [row["reused"] for row in second["families"]] == [True] * 3
    assert stderr.count("was there already") == 3
    assert second["protocol"]["sampling"]["processes"] == 2
    for one, two in zip(first["families"], second["families"], strict=True):
        assert two["scores"] == one["scores"]
        assert two["bits_per_dim"] == pytest.approx(one["bits_per_dim"])
        assert two["reconstruction"] == pytest.approx(one["reconstruction"])


def test_an_autoencoder_shows_reconstructions_and_has_no_scores(runs: Path, tmp_path: Path) -> None:
    result, printed, _ = compare(runs, tmp_path, "--row", "ae", runs / "coder")
    (row,) = result["families"]
    assert row["scores"] is None
    assert result["floor"] == {}
    assert row["missing"]["scores"] == "stage.kind autoencoder generates no images"
    assert row["missing"]["training"].startswith("its metrics.jsonl has no second log line")
    assert row["reconstruction"]["n"] == 6
    assert "| ae | autoencoder | — |" in printed
    assert "ae: autoencoder: reconstructions" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (["{runs}/absent"], ["absent: ", "no such directory"]),
        (
            ["--row", "a", "{runs}/ddpm", "stps=4"],
            ["a: ", "unknown key stage.sampler.stps", "did you mean stage.sampler.steps?"],
        ),
        (["{runs}/ddpm", "--row", "ddpm", "{runs}/ddpm", "steps=4"], ["2 rows are called ddpm", "--row NAME RUN"]),
        (["{runs}/ddpm", "{runs}/coder"], ["ddpm makes images of 1×8×8 and coder of 1×16×16", "runs of one size"]),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_in_one_line(
    runs: Path, tmp_path: Path, rows: list[str], parts: list[str]
) -> None:
    options = [*OPTIONS, "--reference", runs / "reference", "--out", tmp_path]
    line = refused("compare", *(row.format(runs=runs) for row in rows), *options)
    for part in parts:
        assert part in line


def test_sizes_on_disk_stand_beside_bits_per_dim_where_they_are_asked_for(runs: Path, tmp_path: Path) -> None:
    families, printed, _ = compare(runs, tmp_path / "out", runs / "vae", runs / "flow", "--compress")
    for row in families["families"]:
        assert row["compressed"]["n"] == row["bits_per_dim"]["n"] == 6
        assert row["compressed"]["value"] == row["compressed"]["bytes"] * 8 / (6 * 64)
        overhead = (8 * row["compressed"]["initial_bytes"] + 64) / (6 * 64)
        assert row["compressed"]["value"] == pytest.approx(row["bits_per_dim"]["value"] + overhead, rel=0.05)
    assert list(families["formats"]) == FORMATS
    assert all(f"| *{name}* | lossless, each image a file |" in printed for name in FORMATS)
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(name in page for name in (*FORMATS, "bits/dim on disk"))
