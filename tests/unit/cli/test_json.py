"""With --json every command prints one document, with the same names for the same things."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffpipe.__main__ import main
from tests.support.run_folders import run_folder
from tests.support.runs import saved_run

PAGE = Path(__file__).parents[3] / "launch" / "README.md"
CONFIG = str(Path(__file__).parents[3] / "configs" / "fashion_mnist" / "flow.yaml")


def document(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status = main([*map(str, words), "--json"])
    shown = capsys.readouterr()
    tree = json.loads(shown.out)
    assert (tree["command"], tree["status"]) == (words[0], status)
    page = PAGE.read_text(encoding="utf-8").partition("### --json")[2].partition("\n### ")[0]
    assert set(tree) <= set(re.findall("`([a-z_]+)`", page))
    return tree


def test_pack_and_index_say_which_shards_they_wrote_and_what_they_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos", tmp_path / "shards"
    source.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 60 * i).save(source / f"{i}.png")
    (source / "3.png").write_bytes(b"no image")
    packed = document(capsys, "pack", source, out, "--max-bad", 1, "--workers", 0)
    (shards,) = packed["shards"]
    assert (shards["folder"], shards["shards"], shards["samples"]) == (str(out), 1, 3)
    assert "3.png" in packed["skipped"][0]
    assert packed["files"] == sorted(map(str, out.iterdir()))
    indexed = document(capsys, "index", out, "--workers", 1)
    assert indexed["shards"] == packed["shards"]
    assert indexed["changes"] == [{"folder": str(out), "new": [], "gone": [], "changed": [], "samples": 0}]
    assert indexed["files"] == [str(out / "index.safetensors")]
    archive = document(capsys, "pack", out, tmp_path / "images.zip", "--to", "edm-zip", "--workers", 0)
    assert (archive["shards"], archive["files"]) == ([], [str(tmp_path / "images.zip")])
    refused = document(capsys, "pack", source, out)
    assert refused["status"] == 2
    assert "exists" in refused["error"]


def test_config_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "config", "show", CONFIG, "train.steps=7")["config"]["train"]["steps"] == 7
    assert "discriminator" in document(capsys, "config", "schema")["schema"]["properties"]["stage"]
    assert document(capsys, "config", "diff", CONFIG, CONFIG)["differences"] == []
    (key,) = document(capsys, "config", "keys", "train.steps")["keys"]
    assert (key["name"], key["type"], key["default"]) == ("train.steps", "int ≥ 1", None)


def test_status_lists_the_runs_and_imports_nothing_heavy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    first, second = document(capsys, "status", tmp_path)["runs"]
    assert (first["run"], first["state"], first["step"], first["steps"]) == (str(tmp_path / "a"), "unknown", 5, 9)
    assert (second["state"], second["loss"]) == ("foreign", None)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == [str(tmp_path / "a"), "unknown", "5/9", "ddpm"]
    assert "no such folder" in document(capsys, "status", tmp_path / "absent")["error"]
    program = "import sys; from diffpipe.__main__ import main; main(); print('torch' in sys.modules)"
    words = [sys.executable, "-c", program, "status", str(tmp_path)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "False"


def test_a_sweep_is_a_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    commands = document(capsys, "train", CONFIG, "seed=0,1")["commands"]
    assert [any(word == f"seed={seed}" for word in words) for seed, words in enumerate(commands)] == [True, True]


def test_pruning_says_that_nothing_was_removed_where_there_was_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "a")
    pruned = document(capsys, "runs", "prune", tmp_path, "--yes")
    assert (pruned["removable"], pruned["bytes"], pruned["removed"]) == ([], 0, False)
    assert main(["runs", "prune", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_a_command_on_a_run_names_the_run_its_step_and_weights_and_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(run := tmp_path / "run", steps=(2,))
    about = {"run": str(run), "step": 2, "weights": "ema"}
    out = tmp_path / "out"
    for words, names in (
        (["sample", run, out / "a", "--n", 2, "--steps", 2], ["000000.png", "000001.png", "grid.png", "samples.json"]),
        (["export", run, out / "b"], ["config.yaml", "denoiser.safetensors"]),
        (["interpolate", run, out / "c.png", "--n", 1, "--columns", 2, "--steps", 2], [None]),
    ):
        shown = document(capsys, *words)
        assert shown == shown | about
        assert shown["files"] == [str(words[2] / name if name else words[2]) for name in names]
