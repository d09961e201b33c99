"""The options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from diffpipe.__main__ import main
from diffpipe.cli import options
from tests.support.run_folders import run_folder


def test_a_command_takes_the_trained_weights_or_one_average() -> None:
    parser = argparse.ArgumentParser()
    options.add_weights(parser)
    assert options.values(parser.parse_args(["--ema", "0.1"]), "raw", "ema") == {"raw": False, "ema": 0.1}
    with pytest.raises(SystemExit):
        parser.parse_args(["--raw", "--ema", "0.1"])


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (["sample", "new", "run"], "OUT"),
        (["export", "new", "run"], "OUT"),
        (["interpolate", "new", "run"], "OUT"),
        (["encode", "new", "shards", "run"], "OUT"),
        (["encode", "shards", "run", "new"], "SHARDS"),
        (["compress", "shards", "run", "new"], "SHARDS"),
        (["nll", "shards", "run"], "SHARDS"),
        (["classify", "shards", "run"], "SHARDS"),
        (["latent-map", "shards", "run", "new"], "SHARDS"),
        (["attribute", "shards", "run", "new", "--from", "0", "--to", "1"], "SHARDS"),
        (["decompress", "run", "file", "new"], "FILE"),
        (["decompress", "file", "new", "run"], "OUT"),
    ],
)
def test_a_run_in_the_place_of_another_argument_is_named(
    words: list[str], other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run")
    (tmp_path / "shards").mkdir()
    (tmp_path / "file").touch()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe {words[0]}: error: RUN is ")
    assert line.endswith(f", which is no run; {other} is run, which looks like one: swap them")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "shards", "file"}


def test_a_pipeline_in_the_place_of_the_run_to_make_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "model_index.json").touch()
    assert main(["import", "runs/cat", "cat"]) == 2
    assert capsys.readouterr().err == (
        "diffpipe import: error: SOURCE is runs/cat, which is not there; RUN is cat, which looks like one: swap them\n"
    )
