"""`diffpipe config`: the resolved config, its schema, and its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from diffpipe.__main__ import main
from diffpipe.config import dump_yaml, load_config
from diffpipe.experiment.config import Experiment

CONFIG = str(Path(__file__).parents[3] / "configs" / "fashion_mnist" / "flow.yaml")


def test_show_prints_the_resolved_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", CONFIG, "train.steps=7"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_config(Experiment, tmp_path / "resolved.yaml") == load_config(Experiment, CONFIG, ["train.steps=7"])
    assert yaml.safe_load(text)["checkpoint"]["keep_last"] == 2


def test_diff_prints_the_keys_that_differ_and_exits_as_diff_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(load_config(Experiment, CONFIG, ["train.steps=7", "data.test=null"])))
    (tmp_path / "child.yaml").write_text(f"defaults: {CONFIG}\nema: {{kind: power}}\n")
    assert main(["config", "diff", CONFIG, CONFIG]) == 0
    assert capsys.readouterr().out == "no key differs\n"
    assert main(["config", "diff", CONFIG, str(run)]) == 1
    assert capsys.readouterr().out == ("data.test: configs/fashion_mnist/shards/test → null\ntrain.steps: 5000 → 7\n")
    assert main(["config", "diff", CONFIG, f"{tmp_path}/child.yaml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ema.kind: classical → power",
        "ema.decay: 0.999 → (absent)",
        "ema.power: 0.75 → (absent)",
        "ema.sigma_rel: (absent) → [0.05, 0.1]",
        "ema.snapshot_every: (absent) → 1000",
        "ema.keep_snapshots: (absent) → 0",
    ]
    assert main(["config", "diff", CONFIG, str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"] == [
        {"key": "data.test", "first": "configs/fashion_mnist/shards/test", "second": None},
        {"key": "train.steps", "first": 5000, "second": 7},
    ]
    assert main(["config", "show", str(run)]) == 0
    assert capsys.readouterr().out == (run / "config.yaml").read_text()


def test_diff_of_a_folder_without_a_config_is_an_error_and_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "diff", CONFIG, str(tmp_path)]) == 2
    error = f"diffpipe config: error: {tmp_path}/config.yaml: cannot read the config (No such file or directory)"
    assert capsys.readouterr().err.startswith(error)


def test_show_resolves_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "child.yaml").write_text(f"defaults: {CONFIG}\ntrain: {{log_every: 3}}\n")
    assert main(["config", "show", f"{tmp_path}/child.yaml", "train.steps=7"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert "defaults" not in tree
    assert (tree["train"]["steps"], tree["train"]["log_every"], tree["optimizer"]["lr"]) == (7, 3, 2e-3)


def test_schema_describes_every_config_or_those_with_the_stage_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert "discriminator" in every["properties"]["stage"]
    assert every["properties"]["seed"]["description"].startswith("The one seed")
    assert main(["config", "schema", CONFIG]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["properties"]["stage"] == {"$ref": "#/$defs/FlowConfig"}
    assert "GANConfig" not in one["$defs"]


def test_keys_are_listed_by_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys", "stage.dequantization.noise"]) == 0
    text = capsys.readouterr().out
    assert "stage.dequantization.noise_std  (float > 0; default 0.05)" in text
    assert text.count("default") == 1
    assert main(["config", "keys", "stage.zzz"]) == 2
    assert "no key begins with stage.zzz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [
        ("stage.netwrk", "did you mean stage.network?"),
        ("train.setps", "did you mean train.steps?"),
        ("sampler", "did you mean stage.sampler?"),
        ("zzz", "`diffpipe config keys` lists all"),
    ],
)
def test_a_prefix_of_no_key_is_answered_with_the_nearest(
    prefix: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "keys", prefix]) == 2
    assert capsys.readouterr().err == f"diffpipe config: error: no key begins with {prefix}; {remedy}\n"
