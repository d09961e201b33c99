"""The config's rows: what differs from the default is marked, and a config of another version is shown all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffpipe.config import dump_yaml, validate
from diffpipe.experiment.config import Experiment
from diffpipe.report.config_table import ConfigRow, read_config
from tests.support.report_runs import write_config


def test_what_differs_from_the_default_is_marked(tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=7", "optimizer.eps=1e-8", "data.flip=true", "ema.decay=0.5")
    table = read_config(tmp_path / "config.yaml")
    rows = {row.key: row for row in table.rows}
    assert table.problem is None
    assert table.experiment is not None
    assert rows["train.steps"] == ConfigRow("train.steps", "7", None, changed=True)
    assert rows["data.flip"] == ConfigRow("data.flip", "true", "false", changed=True)
    assert rows["optimizer.eps"] == ConfigRow("optimizer.eps", "1e-08", "1e-08", changed=False)
    assert rows["ema.decay"].changed
    assert not rows["ema.kind"].changed
    assert not rows["validate.every"].changed
    assert not rows["stage.codec.kind"].changed
    assert rows["data.resolution"].value == "28"
    assert rows["stage.kind"] == ConfigRow("stage.kind", "ddpm", None, changed=True)


DIT = {"kind": "dit", "depth": 2}
MINIMAL = {"run": {"dir": "runs/a"}, "data": {"train": "a", "batch_size": 4, "resolution": 8}, "train": {"steps": 2}}


@pytest.mark.parametrize(
    ("stage", "sections", "changed"),
    [
        ({}, {}, {}),
        ({}, {"ema": {"kind": "classical"}}, {}),
        ({}, {"ema": {"kind": "power"}}, {"ema.kind": "classical"}),
        ({"network": DIT}, {}, {"stage.network.kind": "unet", "stage.network.depth": "12"}),
        ({"prediction": "edm"}, {}, {"stage.prediction": "eps"}),  # whose schedule is edm where none is given
        ({"prediction": "flow", "schedule": {"kind": "flow"}}, {}, {"stage.prediction": "eps"}),
        ({}, {"run": {"dir": "a", "init": "b"}, "lora": {}}, {"run.init": "null", "lora": "null"}),
    ],
)
def test_what_differs_is_what_would_be_another_value_if_it_were_left_out(
    stage: dict[str, Any], sections: dict[str, Any], changed: dict[str, str], tmp_path: Path
) -> None:
    experiment = validate(Experiment, MINIMAL | {"stage": {"kind": "ddpm", **stage}} | sections, None)
    (tmp_path / "config.yaml").write_text(dump_yaml(experiment))
    rows = [row for row in read_config(tmp_path / "config.yaml").rows if row.changed]
    assert {row.key: row.default for row in rows if row.default is not None} == changed | {"data.train": "null"}
    assert {row.key for row in rows if row.default is None} == {
        "run.dir", "data.batch_size", "data.resolution", "stage.kind", "train.steps"
    }  # fmt: skip


def test_what_training_fills_in_is_marked_and_does_not_differ(tmp_path: Path) -> None:
    write_config(tmp_path, "data.class_names=[cat,dog]", "data.order_version=2")
    rows = {row.key: row for row in read_config(tmp_path / "config.yaml").rows}
    filled_in = {key for key, row in rows.items() if row.filled_in}
    assert filled_in == {"data.class_names", "data.order_version"}
    assert not any(rows[key].changed for key in filled_in)


def test_a_config_of_another_version_is_shown_without_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("stage: {kind: <b>, layers: [1, 2]}\nnew: {}\n")
    table = read_config(path)
    assert table.experiment is None
    assert table.problem
    assert table.rows == [
        ConfigRow("stage.kind", "<b>", None, changed=False),
        ConfigRow("stage.layers", "[1, 2]", None, changed=False),
        ConfigRow("new", "{}", None, changed=False),
    ]


def test_a_file_that_is_no_config_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert read_config(path).problem
    path.write_text("- a\n")
    assert (read_config(path).rows, read_config(path).tree) == ([], {})
    path.write_text(f"long: {'x' * 5000}\n")
    assert len(read_config(path).rows[0].value) == 401
