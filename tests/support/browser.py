"""A headless Chromium, driven by playwright, which records what the pages print on their console."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium: install one (apt-get install chromium, or python -m playwright install chromium)"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium on PATH, else the one that playwright has downloaded. Skips the test where none can run."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("Chromium reserves more addresses than this process may have: run without `ulimit -v`")
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, _NAMES)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip(MISSING)
        # In a container there are neither user namespaces for its sandbox nor much shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """A page, and the list that receives its errors and all that it prints on the console."""
    printed: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.on("console", lambda message: printed.append(message.text))
    page.on("pageerror", lambda error: printed.append(str(error)))
    page.on(
        "request", lambda request: printed.append(f"loads {request.url[:100]}") if _is_remote(request.url) else None
    )
    try:
        page.goto(url)
        yield page, printed
    finally:
        context.close()


def _is_remote(url: str) -> bool:
    return not url.startswith(("file:", "data:", "http://127.0.0.1:"))
