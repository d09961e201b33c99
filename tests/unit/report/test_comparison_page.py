"""The HTML page of a comparison: well-formed, escaped, and without other files."""

from __future__ import annotations

import torch

from diffpipe.report.comparison_page import comparison_page
from diffpipe.report.image_rows import row_image
from tests.support.comparisons import comparison
from tests.support.html_page import Page


def test_the_page_needs_no_other_file_and_describes_each_image() -> None:
    images = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 1, 8, 8)
    text = comparison_page(
        comparison()._replace(remarks=["few <images>"]),
        {"a <b>": ("gan: samples", row_image(images)), "two": ("gan: samples", row_image(images))},
    )
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "a <b>" in page.text
    assert "few <images>." in page.text
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
