"""The pages in a browser: at the width of a desk and of a phone, light and dark, by pointer and by keyboard."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from diffpipe.report.comparison_page import comparison_page
from diffpipe.report.image_rows import row_image
from tests.support.browser import chromium, opened
from tests.support.commands import HOME, command, refused, succeeds
from tests.support.comparisons import comparison
from tests.support.report_runs import finished_run, log_line, write_config, write_grid, write_lines

SIZES = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a finished run, as a URL."""
    home = finished_run(tmp_path_factory.mktemp("report") / "photos")
    printed = succeeds("report", home)
    assert printed.strip() == f"{home}/report.html"
    return (home / "report.html").as_uri()


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a comparison, as a URL."""
    path = tmp_path_factory.mktemp("compare") / "index.html"
    images = row_image(torch.arange(20 * 64, dtype=torch.uint8).reshape(20, 1, 8, 8))
    path.write_text(comparison_page(comparison(), {"one": ("gan: samples", images)}))
    return path.as_uri()


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_fits_its_window_in_light_and_dark(
    name: str, width: int, scheme: str, browser: Browser, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with opened(browser, request.getfixturevalue(name), width, scheme) as (page, printed):
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert _contrast(page, "body") >= 7
        assert all(_contrast(page, place) >= 4.5 for place in ("small", ".soft, caption"))
        for caption in page.locator("caption").all():  # no column of single words
            assert caption.evaluate("node => node.getBoundingClientRect().width") > 0.75 * min(width, 900)
        if name == "report":  # nothing to scroll to on a phone
            assert page.evaluate("[...document.querySelectorAll('.scroll')].every(n => n.scrollWidth <= n.clientWidth)")
        assert printed == []
    with Image.open(tmp_path / "page.png") as picture:
        corner = picture.convert("L").getpixel((2, 2))
    assert isinstance(corner, int)
    assert corner > 240 if scheme == "light" else corner < 30


def _contrast(page: Page, selector: str) -> float:
    """The contrast of an element's text with the page behind it, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = "(node, key) => getComputedStyle(node)[key]"
    ink = luminance(page.locator(selector).first.evaluate(style, "color"))
    paper = luminance(page.locator("body").evaluate(style, "backgroundColor"))
    return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)


def test_the_slider_changes_the_picture_by_keyboard(report: str, browser: Browser) -> None:
    with opened(browser, report) as (page, printed):
        slider, shown = page.locator("#slider"), page.locator(".grids img:visible")
        expect(shown).to_have_attribute("data-step", "1000")
        _tab_to(page, "slider")
        assert slider.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
        before = shown.screenshot()
        for key, step in (("ArrowLeft", 900), ("ArrowLeft", 800), ("Home", 100), ("ArrowRight", 200), ("End", 1000)):
            page.keyboard.press(key)
            expect(shown).to_have_count(1)
            expect(shown).to_have_attribute("data-step", str(step))
            expect(page.locator("#step")).to_have_text(f"step {step:,}")
        page.keyboard.press("ArrowLeft")
        assert shown.screenshot() != before
        assert printed == []


def _tab_to(page: Page, name: str) -> None:
    for _ in range(50):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == name:
            return
    raise AssertionError(f"Tab does not come to {name}")


def test_a_curve_tells_its_values_under_the_pointer_and_by_keyboard(report: str, browser: Browser) -> None:
    with opened(browser, report) as (page, printed):
        area = page.locator(".plot .area").first
        box = area.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tip = area.locator(".tip")
        expect(tip).to_contain_text("step 500")
        expect(tip).to_contain_text(f"{log_line(500)['loss']:.4g}")
        page.mouse.move(0, 0)
        expect(tip).to_have_count(0)
        area.focus()
        for key, step in (("ArrowLeft", "1,000"), ("ArrowLeft", "990"), ("Home", "10"), ("ArrowRight", "20")):
            page.keyboard.press(key)
            expect(tip).to_contain_text(f"step {step}")
        inside = tip.evaluate("node => node.getBoundingClientRect().left >= 0")
        assert inside
        assert printed == []


def test_what_is_not_a_script_of_ours_does_not_run(browser: Browser, tmp_path: Path) -> None:
    home = finished_run(tmp_path / "run")
    page_file = Path(succeeds("report", home, "--out", tmp_path / "page.html").strip())
    page_file.write_text(page_file.read_text().replace("<main>", "<main><script>document.title = 'taken'</script>"))
    with opened(browser, page_file.as_uri()) as (page, printed):
        assert page.title() == "run: diffpipe report"
        assert "Content Security Policy" in printed[0]


def test_a_page_that_is_watched_follows_the_run_and_keeps_the_slider(browser: Browser, tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=100")
    write_lines(tmp_path / "metrics.jsonl", [log_line(10), log_line(20)])
    for step in (10, 20):
        write_grid(tmp_path, step)
    words = command("report", tmp_path, "--watch")
    with subprocess.Popen(words, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            with opened(browser, url) as (page, printed):
                page.locator("#slider").focus()
                page.keyboard.press("ArrowLeft")
                page.locator("#config details summary").click()
                page.locator("#slider").focus()
                write_grid(tmp_path, 30)
                write_lines(tmp_path / "metrics.jsonl", [log_line(step) for step in (10, 20, 30)])
                expect(page.locator(".progress")).to_contain_text("step 30", timeout=60_000)
                expect(page.locator(".grids img:visible")).to_have_attribute("data-step", "10")
                expect(page.locator("#slider")).to_be_focused()
                assert page.locator("#config details").evaluate("node => node.open")
                page.keyboard.press("End")
                expect(page.locator("#step")).to_have_text("step 30")
                write_grid(tmp_path, 40)
                expect(page.locator("#step")).to_have_text("step 40", timeout=60_000)  # it was at the newest
                assert printed == []
                (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")  # as over a file server that fails for a while
                (tmp_path / "metrics.jsonl").mkdir()
                expect(page.locator("#live")).to_have_text("the run cannot be read", timeout=60_000)
                expect(page.locator(".progress")).to_contain_text("step 30")
                (tmp_path / "metrics.jsonl").rmdir()
                (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
                expect(page.locator("#live")).to_have_text("live", timeout=60_000)
                server.send_signal(signal.SIGINT)
                assert server.wait(30) == 0
                expect(page.locator("#live")).to_have_text("the server has stopped", timeout=10_000)
            assert server.stderr is not None
            assert server.stderr.read() == ""
        finally:
            server.kill()


def test_wrong_uses_are_refused_in_one_line(tmp_path: Path) -> None:
    assert refused("report", tmp_path).endswith("in it; give one")
    assert "no such directory" in refused("report", tmp_path / "absent", "--watch")
    write_config(tmp_path)
    assert "give another --out" in refused("report", tmp_path, "--out", tmp_path / "absent" / "page.html")
    assert "give another --port" in refused("report", tmp_path, "--watch", "--port", -1)
