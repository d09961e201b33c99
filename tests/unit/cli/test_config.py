"""`diffpipe config`: the resolved config, its schema, and its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from diffpipe.__main__ import main
from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment

CONFIG = str(Path(__file__).parents[3] / "configs" / "fashion_mnist" / "flow.yaml")


def test_show_prints_the_resolved_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", CONFIG, "train.steps=7"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_config(Experiment, tmp_path / "resolved.yaml") == load_config(Experiment, CONFIG, ["train.steps=7"])
    assert yaml.safe_load(text)["checkpoint"]["keep_last"] == 2


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
