"""The config's rows: what differs from the default is marked, and a config of another version is shown all the same."""

from __future__ import annotations

from pathlib import Path

from diffpipe.report.config_table import ConfigRow, read_config
from tests.support.report_runs import write_config


def test_what_differs_from_the_default_is_marked(tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=7", "optimizer.eps=1e-8", "data.flip=true", "ema.decay=0.5")
    table = read_config(tmp_path / "config.yaml")
    rows = {row.key: row for row in table.rows}
    assert table.problem is None
    assert table.experiment is not None
    assert rows["train.steps"] == ConfigRow("train.steps", "7", "none", changed=True)
    assert rows["data.flip"] == ConfigRow("data.flip", "true", "false", changed=True)
    assert rows["optimizer.eps"] == ConfigRow("optimizer.eps", "1e-08", "1e-08", changed=False)
    assert rows["ema.decay"].changed
    assert not rows["ema.kind"].changed
    assert not rows["validate.every"].changed
    assert not rows["stage.codec.kind"].changed
    assert rows["stage.kind"].changed


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
