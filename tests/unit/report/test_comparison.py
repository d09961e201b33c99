"""Rows asked for, numbers as they read, the table and the page made of them, and what makes a score the same again."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.score_cache import Plan, Scored, remembering
from diffpipe.metrics import protocol
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.protocol import Result
from diffpipe.report.comparison_runner import require_comparable, require_one_size
from diffpipe.report.comparison_table import (
    COST_COLUMNS,
    DASH,
    Comparison,
    duration,
    markdown,
    quality_columns,
    three_digits,
    with_unit_letter,
)
from diffpipe.report.html_report import comparison_page
from diffpipe.report.image_rows import ImageRow, images_per_row, row_image, stack_rows
from diffpipe.report.run_summary import RunSummary

FD, RECALL = "fd_efficientnet_lite0", "recall_efficientnet_lite0"
METRICS = {name: {"extractor": "efficientnet_lite0"} for name in (FD, RECALL)}


def summary(name: str, **known: Any) -> RunSummary:
    about: dict[str, Any] = {"checkpoint": "c" * 64, "step": 10, "images_seen": 57600, "weights": "ema", "sampler": {}}
    size: dict[str, Any] = {"generating": 236_000, "all": 2_740_000}
    return RunSummary(name=name, run=f"runs/{name}", stage="gan", conditional=True, parameters=size, **about | known)


def bits(value: float, kind: str, unit: str = "bits/dim") -> dict[str, Any]:
    return {"value": value, "standard_error": 0.01, "n": 20, "unit": unit, "kind": kind}


def comparison() -> Comparison:
    said = {
        "n": 60,
        "likelihood_n": 20,
        "metrics": METRICS,
        "reference": {"n": 2000},
        "sampling": {"batch": 50, "precision": "float32", "device": "CPU", "threads": 1, "processes": 2},
    }
    rows = [
        summary("a <b>", scores={FD: 324.06, RECALL: 0.5}, bits_per_dim=bits(3.25, "bound"), training=None),
        summary("two", scores={FD: 41.04, RECALL: 0.25}, bits_per_dim=bits(1.5, "exact", "bits/dim of noised images")),
        summary(
            "coder", reconstruction={"value": 0.01234, "unit": "mse", "n": 20}, missing={"scores": "makes none & co"}
        ),
    ]
    return Comparison(rows, {FD: 12.5, RECALL: 0.75}, said)


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


def test_the_table_marks_the_best_and_leaves_out_what_is_not_there() -> None:
    lines = markdown(comparison()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    by_title = {title: [row[i] for row in cells[2:]] for i, title in enumerate(cells[0])}
    assert by_title["FD ↓"] == ["324.1", "**41.0**", DASH, "12.5"]
    assert by_title["recall ↑"] == ["**0.50**", "0.25", DASH, "0.75"]
    # Of noised images: not to be compared with the other, which then has nothing to be better than.
    assert by_title["bits/dim ↓"] == ["3.250 (bound)", "1.500 (exact of noised images)", DASH, ""]
    assert by_title["reconstruction MSE ↓"] == [DASH, DASH, "0.0123", ""]
    assert by_title["training images/s ↑"] == [DASH, DASH, DASH, ""]
    assert by_title["parameters in all"] == ["2.74 M"] * 3 + [""]


def test_the_best_is_the_least_distance_and_the_most_speed_and_alone_nothing_is_best() -> None:
    rows = [summary("slow", training={"images_per_second": 5.0, "seconds": 9.0}), summary("none")]
    fast = summary("fast", training={"images_per_second": 50.0, "seconds": 9.0})
    (speed,) = [column for column in COST_COLUMNS if column.title == "training images/s"]
    assert speed.best([*rows, fast]) == {"fast"}
    assert speed.best(rows) == set()
    alike = summary("alike", training={"images_per_second": 50.01, "seconds": 9.0})
    assert speed.best([*rows, fast, alike]) == {"fast", "alike"}  # both read 50.0
    distance = quality_columns([FD], None)[0]
    assert distance.best(comparison().summaries) == {"two"}


class Page(HTMLParser):
    """Requires every element that is opened to be closed in turn, and collects what a test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for seen, attributes in self.seen if seen == tag]


def test_the_page_is_whole_by_itself_and_says_what_each_picture_is() -> None:
    images = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 1, 8, 8)
    text = comparison_page(
        comparison(), {"a <b>": ("gan: samples", row_image(images)), "two": ("gan: samples", row_image(images))}
    )
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "a <b>" in page.text
    assert not page.all("b")
    assert [image["alt"] for image in page.all("img")] == ["a <b>: gan: samples", "two: gan: samples"]
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.all("img"))
    assert "http" not in text
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.seen}
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert all(head["scope"] in {"col", "row"} for head in page.all("th"))
    assert {"title": "makes none & co"} in page.all("td")
    assert "makes none & co" in page.text
    assert [cell for cell in page.all("td") if cell.get("class") == "best"]


def test_a_picture_has_a_row_a_family_and_small_images_enlarged() -> None:
    assert (images_per_row(10), images_per_row(0), images_per_row(3), images_per_row(30), images_per_row(1000)) == (
        20,
        20,
        18,
        30,
        20,
    )
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[1, 0] = 255
    row = row_image(images)
    assert row.size == (4 * 56 + 3 * 2, 56)
    assert row.getpixel((60, 5)) == (255, 0, 0, 255)
    assert row.getpixel((57, 5)) == (0, 0, 0, 0)
    one, two = (stack_rows([ImageRow("name", "note", images)] * k, ["0", "1", "0", "1"]) for k in (1, 2))
    assert two.height - one.height == 56 + 6
    assert one.width > row.width
    assert row_image(torch.zeros(2, 1, 256, 256, dtype=torch.uint8)).height == 112


def scored(n: int = 60, fingerprint: str = "f", sha256: str = "s") -> Scored:
    said = {
        "generated": {"n": n},
        "reference": {"n": 9, "fingerprint": fingerprint},
        "metrics": {FD: {"sha256": sha256}},
    }
    return Scored(Result({FD: 1.0}, {FD: 0.5}, said), Path("score.json"), reused=True)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (scored(n=61), "generated.n: 60 against 61"),
        (scored(fingerprint="g"), "reference.fingerprint: 'f' against 'g'"),
        (scored(sha256="t"), f"metrics.{FD}.sha256: 's' against 't'"),
    ],
)
def test_scores_of_unlike_protocols_are_not_put_side_by_side(other: Scored, field: str) -> None:
    require_comparable({"a": scored(), "coder": None, "b": scored()})
    with pytest.raises(UserError, match=r"a and c follow unlike protocols .*, with --fresh") as refused:
        require_comparable({"a": scored(), "coder": None, "b": scored(), "c": other})
    assert field in str(refused.value)


def test_runs_of_other_sizes_are_refused() -> None:
    require_one_size({"a": (1, 28), "b": (1, 28)})
    with pytest.raises(UserError, match="a makes images of 1×28×28 and c of 3×32×32"):
        require_one_size({"a": (1, 28), "b": (1, 28), "c": (3, 32)})


def test_features_of_the_same_images_are_found_once() -> None:
    asked: list[int] = []

    def network(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.float().mean((2, 3))

    extractor = remembering(Extractor("mean", 3, "hash", "none", network))
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    other = images.clone()
    other[0, 0, 0, 0] ^= 1
    first = extractor(images)
    assert torch.equal(extractor(images.clone()), first)
    assert asked == [5]
    assert not torch.equal(extractor(other), first)
    assert asked == [5, 5]
    assert torch.equal(
        extractor(images[:, :, :2].reshape(5, 1, 2, 4)), images[:, :, :2].float().mean((2, 3)).expand(-1, 3)
    )


def test_a_score_file_is_found_again_by_all_that_makes_it_what_it_is(tmp_path: Path) -> None:
    said = {"generated": {"seed": 0}, "reference": {"fingerprint": "f", "shards": ["here"]}, "versions": {"torch": "2"}}
    whole = {"generated": {"seed": 0}, "reference": {"fingerprint": "f"}, "floor": {}, "versions": {"torch": "2"}}
    plan = Plan(whole, [FD], tmp_path / "scores" / "own.json")
    assert plan.made() is None
    result = Result({FD: 1.0, RECALL: 0.5}, {FD: 0.5, RECALL: 0.5}, said)
    protocol.write(dataclasses.replace(result, protocol=said | {"generated": {"seed": 1}}), plan.path)
    (tmp_path / "scores" / "other.json").write_text("{}")
    assert plan.made() is None
    protocol.write(result, tmp_path / "scores" / "step.json")
    found = plan.made()
    assert found is not None
    assert found == (result, tmp_path / "scores" / "step.json")
    assert plan._replace(metrics=["kid"]).made() is None
