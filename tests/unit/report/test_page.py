"""The pages: values are escaped, and a browser may run the page's own script and no other."""

from __future__ import annotations

import base64
import hashlib
import re

import jinja2
import pytest

from diffpipe.report import page

TEMPLATES = {
    "hello.html": "<p>{{ name }}</p>\n{% block script %}{% if script is defined %}{{ script_hash }}"
    "<script>{{ script|safe }}</script>{% endif %}{% endblock %}",
    "hello.js": "alert(1 < 2)\n",
}


@pytest.fixture(autouse=True)
def templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_LOADER", jinja2.DictLoader(TEMPLATES))


def test_values_are_escaped_and_a_missing_one_is_an_error() -> None:
    assert page.render("hello.html", name="<script>&") == "<p>&lt;script&gt;&amp;</p>\n"
    with pytest.raises(jinja2.UndefinedError):
        page.render("hello.html")


def test_a_name_that_is_not_utf8_is_shown_with_an_escape() -> None:
    assert page.render("hello.html", name="run\udcff") == "<p>run\\udcff</p>\n"


def test_the_hash_is_of_the_script_in_the_page() -> None:
    text = page.render("hello.html", script="hello.js", name="")
    script = re.search("<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    assert script[1] == TEMPLATES["hello.js"]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"sha256-{digest}" in text
