"""eval/anomaly/measure.py on few steps and images, and its table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffpipe.data import images, labels, load
from tests.support.commands import HOME


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", HOME / "eval" / "anomaly" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tenth_class_is_scored_by_a_run_that_never_saw_it(
    measure: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["classes", str(tmp_path), "--classes", "8", "--stages", "autoencoder", "--steps", "2", "--n", "30"]
    measure.main(words)
    printed = capsys.readouterr().out
    assert labels(load(str(tmp_path / "without-8" / "train")), range(9000)).bincount(minlength=10)[8] == 0
    assert set(labels(load(str(tmp_path / "without-8" / "abnormal")), range(200)).tolist()) == {8}
    result = json.loads((tmp_path / "classes.json").read_text())
    figure = result["found"]["autoencoder"]["Bag"]["detection"]["error"]["auroc"]
    assert f"| Bag | {figure['value']:.2f} ± " in printed
    assert result["recipes"]["autoencoder"]["steps"] == 2
    score = tmp_path / "without-8" / "autoencoder.json"
    before = score.stat().st_mtime_ns
    measure.main(words)  # results are kept
    assert score.stat().st_mtime_ns == before
    assert capsys.readouterr().out.endswith(printed[printed.index("| anomaly") :])


def test_digits_are_stretched_or_have_a_black_border(measure: ModuleType, tmp_path: Path) -> None:
    sets = measure.digit_sets(tmp_path)
    pixels = {name: images(load(str(shards)), range(1797), None, 1) for name, shards in sets.items()}
    assert {name: tuple(digits.shape) for name, digits in pixels.items()} == dict.fromkeys(sets, (1797, 1, 28, 28))
    inside = torch.zeros(28, 28, dtype=torch.bool)
    inside[4:24, 4:24] = True
    assert pixels["bordered"][:, 0, ~inside].max() == 0
    assert pixels["bordered"].max() == 255
    assert pixels["stretched"][:, 0, :4].max() > 0


def detection(value: float, half: float) -> dict:
    return {"auroc": {"value": value, "low": value - half, "high": value + half}}


def test_the_table_has_a_row_per_anomaly_and_their_mean(measure: ModuleType) -> None:
    found = {
        "autoencoder": {
            "Bag": {"detection": {"error": detection(0.9, 0.02)}},
            "Coat": {"detection": {"error": detection(0.5, 0.04)}},
        },
        "flow": {
            "Bag": {"detection": {"bound": detection(0.25, 0.03), "complexity": detection(0.75, 0.01)}},
            "Coat": {"detection": {"bound": detection(0.35, 0.03), "complexity": detection(0.85, 0.01)}},
        },
    }
    assert measure.table(found, mean=False) == measure.table(found, mean=True).rpartition("\n")[0]
    assert measure.table(found, mean=True).splitlines() == [
        "| anomaly | autoencoder: error | flow: bound | flow: complexity |",
        "| --- | ---: | ---: | ---: |",
        "| Bag | 0.90 ± 0.02 | 0.25 ± 0.03 | 0.75 ± 0.01 |",
        "| Coat | 0.50 ± 0.04 | 0.35 ± 0.03 | 0.85 ± 0.01 |",
        "| mean | 0.70 | 0.30 | 0.80 |",
    ]


def test_the_readmes_tables_are_those_of_the_json_files(measure: ModuleType) -> None:
    folder = HOME / "eval" / "anomaly"
    readme = (folder / "README.md").read_text()
    figures = list(folder.glob("*.json"))
    assert figures
    for path in figures:
        assert measure.table(json.loads(path.read_text())["found"], mean=path.stem == "classes") in readme
