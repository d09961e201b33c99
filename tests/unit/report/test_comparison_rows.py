"""The rows that `diffpipe compare` takes: runs named after their directory, and rows with a name and a sampler."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.report.comparison_rows import ComparisonRow, comparison_rows


@pytest.mark.parametrize(
    ("words", "row"),
    [
        (["runs/ddpm"], ComparisonRow("ddpm", Path("runs/ddpm"))),
        (
            ["runs/ddpm/checkpoints/step-00000010"],
            ComparisonRow("ddpm", Path("runs/ddpm/checkpoints/step-00000010")),
        ),
        (
            ["DDIM at 4 steps", "runs/ddpm", "sampler=ddim", "steps=4"],
            ComparisonRow("DDIM at 4 steps", Path("runs/ddpm"), ("stage.sampler.kind=ddim", "stage.sampler.steps=4")),
        ),
        (
            ["latent", "runs/latent", "codec=runs/vae"],
            ComparisonRow("latent", Path("runs/latent"), ("stage.codec.run=runs/vae",)),
        ),
    ],
)
def test_a_row_is_a_run_with_its_name_and_sampler(words: list[str], row: ComparisonRow) -> None:
    runs, named = (words, []) if len(words) == 1 else ([], [words])
    assert comparison_rows(runs, named) == [row]


def test_plain_runs_come_before_named_rows() -> None:
    rows = comparison_rows(["runs/a", "runs/b"], [["x", "runs/a"], ["y", "runs/b"]])
    assert [row.name for row in rows] == ["a", "b", "x", "y"]


@pytest.mark.parametrize(
    ("runs", "named", "parts"),
    [
        ([], [], ["no run to compare", "--row NAME RUN"]),
        (["runs/a", "elsewhere/a"], [["x", "runs/b"]], ["2 rows are called a", "--row NAME RUN"]),
        ([], [["", "runs/a"]], ["--row '' runs/a", "write --row NAME RUN"]),
        ([], [["a"]], ["--row a:", "write --row NAME RUN"]),
        ([], [["a", "runs/a", "steps"]], ["--row a runs/a steps", "'steps' is not a setting", "steps=4"]),
        ([], [["a", "runs/a", "=4"]], ["'=4' is not a setting"]),
        ([], [["a", "runs/a", "runs/b"]], ["'runs/b' is not a setting", "other RUNs before --row"]),
    ],
)
def test_a_row_that_is_incomplete_is_refused(runs: list[str], named: list[list[str]], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        comparison_rows(runs, named)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DDIM at 4 steps=runs/ddpm,kind=ddim,steps=4", "--row 'DDIM at 4 steps' runs/ddpm sampler=ddim steps=4"),
        ("runs/ddpm,vlb_steps=30", "--row ddpm runs/ddpm vlb_steps=30"),
        ("a=runs/ddpm", "--row a runs/ddpm"),
        ("=runs/a", "--row NAME runs/a"),
        ("a=", "--row a RUN"),
    ],
)
def test_the_former_way_to_write_a_row_is_answered_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(UserError) as refused:
        comparison_rows([old], [])
    assert str(refused.value).endswith(f"write {new}")


def test_a_run_whose_path_has_a_comma_or_an_equals_sign_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "lr=0.1,wd=0"
    path.mkdir()
    assert comparison_rows([str(path)], []) == [ComparisonRow("lr=0.1,wd=0", path)]
