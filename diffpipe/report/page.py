"""HTML pages that need no other file: templates with one style, and scripts that are named by their hash."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import jinja2

from diffpipe.output import utf8

_LOADER = jinja2.PackageLoader("diffpipe.report")


def render(template: str, script: str | None = None, **values: Any) -> str:
    """The page as text. Everything in `values` is escaped.

    script: a file beside the template. With one, the page's policy lets a browser run this script and no other, and
    load nothing from anywhere.
    """
    environment = jinja2.Environment(
        loader=_LOADER,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if script is not None:
        source, _, _ = _LOADER.get_source(environment, script)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        values |= {"script": source, "script_hash": f"sha256-{digest}"}
    return utf8(environment.get_template(template).render(values))
