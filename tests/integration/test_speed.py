"""The scripts of eval/speed run, and the numbers that they count, not time, are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.speed import launch, loading, processes
from tests.support.commands import TINY, diffpipe
from tests.support.markdown_tables import table_rows

SMALL = [*TINY, "data.resolution=8", "train.device=cpu", "train.precision=fp32"]


def script(name: str, *words: object, processes: int = 0) -> str:
    """The output of `python -m eval.speed.NAME`, on several processes where asked."""
    result = diffpipe(*words, *SMALL, processes=processes, module=f"eval.speed.{name}")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts start their jobs as forks of the command server, which saves the seconds of a launcher."""

    def start(module: str, *words: object, processes: int, threads: int) -> str:
        result = diffpipe(
            *words, processes=processes if processes > 1 else 0, module=module, env={"OMP_NUM_THREADS": str(threads)}
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    monkeypatch.setattr(launch, "run_module", start)


def test_saving(tmp_path: Path) -> None:
    for ranks in (0, 2):
        (row,) = table_rows(script("saving", "--rounds", 1, "--steps", 1, "--dir", tmp_path, processes=ranks))
        assert float(row["stall/synchronous"].rstrip("%")) > 0
        assert row["save_state"].endswith(" s")
    assert not list(tmp_path.iterdir())


def test_each_of_two_sharded_processes_holds_half_and_recomputation_keeps_less() -> None:
    *states, kept, recomputed = table_rows(script("memory", processes=2))
    ddp, fsdp, hsdp = (float(row["of ddp's"]) for row in states)
    assert ddp == 1
    assert 0.5 <= fsdp <= 0.55
    assert hsdp == fsdp  # one copy, over both
    for figure in ("kept for the backward pass", "peak of a step"):
        assert float(recomputed[figure].split()[0]) < float(kept[figure].split()[0])


def test_one_of_many_processes() -> None:
    step, fid, kid = table_rows(script("many_ranks", "--ranks", 4, "--dim", 8))
    assert step["a step of"].startswith("4 processes")
    assert fid["collectives"] == "1"
    assert kid["collectives"] == "7"  # one for the counts, three for features and three for their hashes


def test_costs() -> None:
    result = table_rows(script("costs", "--rounds", 1, "--steps", 2, processes=2))
    assert [row["step"].split(",")[0] for row in result] == [
        "ddp",
        "fsdp",
        "ddp with the stop consensus",
        "the stop consensus alone",
    ]


def test_targets() -> None:
    result = table_rows(script("targets", "--rounds", 1))
    assert [row["target"] for row in result] == ["eps", "x0", "v", "edm", "flow"]
    assert result[0]["of eps's"] == result[0]["CPU time of eps's"] == "1.000"


def test_autoregressive() -> None:
    words = ["stage.network.width=16", "stage.network.depth=2", "data.batch_size=2", "data.resolution=8"]
    words += ["train.device=cpu", "train.precision=fp32", "--steps", 1, "--images", 2, "--passes", 1]
    result = diffpipe(*words, module="eval.speed.autoregressive")
    assert result.returncode == 0, result.stderr
    trainer, plain, cached, uncached = table_rows(result.stdout)
    assert float(trainer["ratio"]) > 0
    assert plain["ratio"] == uncached["ratio"] == "1.000"
    assert float(cached["ratio"]) > 0
    assert "64 tokens per image" in result.stdout


@pytest.mark.usefixtures("forked")
def test_each_byte_is_hashed_once_per_node_and_copied_once_by_each_rank_that_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loading.main(["--rounds", "1", "--dir", str(tmp_path), *SMALL])
    ddp, shared, fsdp = table_rows(capsys.readouterr().out)

    def total(row: dict[str, str], column: str) -> float:
        return float(row[column].partition("= ")[2])

    for row in (ddp, shared, fsdp):
        assert total(row, "hashed") == pytest.approx(1, abs=0.05)
    assert total(fsdp, "copied") < 1
    assert total(shared, "copied") == pytest.approx(total(fsdp, "copied"), abs=0.005)
    assert total(ddp, "copied") == pytest.approx(2 * total(fsdp, "copied"), abs=0.005)


@pytest.mark.usefixtures("forked")
def test_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes.main(["--rounds", "1", "--steps", "3", "--dir", str(tmp_path), *SMALL])
    alone, two = table_rows(capsys.readouterr().out)
    assert float(alone["ratio"]) == 1
    assert float(two["images/s"]) > 0
    assert not list(tmp_path.iterdir())
