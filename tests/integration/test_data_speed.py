"""The scripts of eval/speed about data run, and the numbers that they count are right."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from eval.speed import epochs, first_batch, locality, order
from tests.support.markdown_tables import table_rows


def test_a_rank_reads_from_few_shards_at_a_time_and_fetches_each_about_once(capsys: pytest.CaptureFixture[str]) -> None:
    # Shards of 512 samples and lanes of 4 shards: a lane's window of 256 lies in one shard.
    locality.main(["--shards", "256", "--samples", "512", "--worlds", "1,8", "--batch", "64", "--rooms", "128,16"])
    result = {row["order"]: row for row in table_rows(capsys.readouterr().out)}
    assert result["rank 0 of 1"]["at a time"] == "64"
    assert result["rank 0 of 8"]["at a time"] == "8"
    assert result["rank 0 of 8"]["shards"] == "32"
    for name in ("rank 0 of 1", "rank 0 of 8"):
        assert float(result[name]["read/used, room for 128"]) == 1
        assert float(result[f"{name}, two sources"]["read/used, room for 128"]) < 1.1
        assert float(result[f"{name}, uniform"]["read/used, room for 128"]) > 100
    assert float(result["rank 0 of 8"]["read/used, room for 16"]) == 1


def test_the_overlap_of_epochs_is_that_of_chance(capsys: pytest.CaptureFixture[str]) -> None:
    epochs.main(["--samples", "6000", "--shards", "1,200", "--shuffle-windows", "1024", "--epochs", "4"])
    few, many = table_rows(capsys.readouterr().out)
    assert int(few["version 1"].split("%")[0]) > 90
    assert 25 < int(few["version 2"].split("%")[0]) < 42
    assert many["version 1"] == many["version 2"]


def test_the_cost_of_the_order_is_within_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    order.main(["--n", "5000", "--rounds", "1"])
    result = table_rows(capsys.readouterr().out)
    assert len(result) == 5
    assert all(float(row["CPU per position"].removesuffix(" us")) <= 10 for row in result)
    assert all(float(row["memory"].removesuffix(" MB")) <= 100 for row in result)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves a shard open that is not read to its end
def test_a_resume_reads_only_its_own_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first_batch.main(
        ["--dir", str(tmp_path / "shards"), "--samples", "600", "--shards", "4", "--batch", "8", "--rounds", "1"]
    )
    gc.collect()
    result = table_rows(capsys.readouterr().out)
    assert [row["samples read"] for row in result] == ["8", "8"]
    assert result[0]["bytes read"] == result[1]["bytes read"]
    assert [row["samples that webdataset reads"] for row in result] == ["8", "548"]
