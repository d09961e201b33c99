"""The numbers of a comparison's table, and its marks of the best."""

from __future__ import annotations

import pytest

from diffpipe.report.comparison_table import (
    COST_COLUMNS,
    DASH,
    duration,
    markdown,
    quality_columns,
    three_digits,
    with_unit_letter,
)
from tests.support.comparisons import FD, comparison, summary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (three_digits(2675.4), "2,675"),
        (three_digits(90.71), "90.7"),
        (three_digits(2.204), "2.20"),
        (three_digits(-28.23), "−28.2"),
        (with_unit_letter(2_740_000.0), "2.74 M"),
        (with_unit_letter(236_100.0), "236 k"),
        (with_unit_letter(999.0), "999"),
        (duration(115.0), "115 s"),
        (duration(288.0), "4.8 min"),
        (duration(11_000.0), "3.1 h"),
    ],
)
def test_numbers_read_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected


def test_the_table_marks_the_best_and_has_a_dash_for_an_absent_value() -> None:
    lines = markdown(comparison()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    by_title = {title: [row[i] for row in cells[2:]] for i, title in enumerate(cells[0])}
    assert by_title["FD ↓"] == ["324.1", "**41.0**", DASH, "12.5"]
    assert by_title["recall ↑"] == ["**0.50**", "0.25", DASH, "0.75"]
    # One of two is of noised images, so the other has nothing to be better than.
    assert by_title["bits/dim ↓"] == ["3.250 (bound)", "1.500 (exact of noised images)", DASH, ""]
    assert by_title["reconstruction MSE ↓"] == [DASH, DASH, "0.0123", ""]
    assert by_title["training images/s ↑"] == [DASH, DASH, DASH, ""]
    assert by_title["parameters in all"] == ["2.74 M"] * 3 + [""]


def test_sizes_on_disk_have_a_column_and_each_format_a_row() -> None:
    families = comparison()
    assert "on disk" not in markdown(families)
    small = summary("small", compressed={"value": 3.576, "bytes": 10, "initial_bytes": 1, "n": 20})
    large = summary("large", compressed={"value": 3.7, "bytes": 11, "initial_bytes": 1, "n": 20})
    sizes = {"PNG": 5.1623, "WebP": 4.5348}
    rows = families._replace(summaries=[*families.summaries, small, large], formats=sizes)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(rows).splitlines()]
    assert len({len(row) for row in cells}) == 1
    column = cells[0].index("bits/dim on disk ↓")
    on_disk = {row[0]: row[column] for row in cells[2:]}
    assert on_disk == {
        "a <b>": DASH,
        "two": DASH,
        "coder": DASH,
        "small": "**3.576**",
        "large": "3.700",
        "*real images*": "",
        "*PNG*": "5.162",
        "*WebP*": "4.535",
    }


def test_the_best_is_the_least_distance_or_the_most_speed_of_at_least_two() -> None:
    rows = [summary("slow", training={"images_per_second": 5.0, "seconds": 9.0}), summary("none")]
    fast = summary("fast", training={"images_per_second": 50.0, "seconds": 9.0})
    (speed,) = [column for column in COST_COLUMNS if column.title == "training images/s"]
    assert speed.best([*rows, fast]) == {"fast"}
    assert speed.best(rows) == set()
    alike = summary("alike", training={"images_per_second": 50.01, "seconds": 9.0})
    assert speed.best([*rows, fast, alike]) == set()  # both read 50.0: a tie is not best
    distance = quality_columns([FD], None)[0]
    assert distance.best(comparison().summaries) == {"two"}
