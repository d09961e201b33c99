"""The licenses of the libraries that diffpipe requires: `python -m tests.support.licenses` prints the page."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections import defaultdict
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import HOME

PAGE = HOME / "launch" / "licenses.md"
HEAD = """# Licenses of the libraries that diffpipe requires

diffpipe is under the [Apache License 2.0](../LICENSE). These are the libraries that it requires, and those that they
require in turn on Linux, each with the license in its metadata. torch brings NVIDIA's libraries, which are not free
software. The extra `jxl` is not in `[all]`: its library is under the GPL.
"""
SAME = {  # one name for what is the same license
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "LicenseRef-NVIDIA-Proprietary": "NVIDIA's",
    "NVIDIA Proprietary Software": "NVIDIA's",
    "Other/Proprietary License": "NVIDIA's",
}


def holding(requirements: Iterable[str], extra: str = "") -> list[Requirement]:
    """The requirements that hold on this machine with one extra."""
    parsed = map(Requirement, requirements)
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": extra})]


def dependencies(requirements: Iterable[str]) -> set[str]:
    """The libraries that are required, and those that they require, by name."""
    seen: set[tuple[str, frozenset[str]]] = set()
    stack = holding(requirements)
    while stack:
        one = stack.pop()
        library = (canonicalize_name(one.name), frozenset(one.extras))
        if library not in seen and library[0] != "diffpipe":
            seen.add(library)
            texts = importlib.metadata.requires(one.name) or []
            stack += [required for extra in ("", *one.extras) for required in holding(texts, extra)]
    return {name for name, _ in seen}


def declared() -> tuple[list[str], list[str]]:
    """The requirements of the base installation, and those of the extras for users."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"], [text for extra in extras.keys() - {"test", "dev"} for text in extras[extra]]


def license_of(library: str) -> str:
    """The license in the library's metadata."""
    metadata = importlib.metadata.metadata(library).json
    if expression := metadata.get("license_expression"):
        return SAME.get(str(expression), str(expression))
    classifiers = [text.split(" :: ") for text in metadata.get("classifier", [])]
    names = [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 1]
    name = ", ".join(SAME.get(name, name) for name in names) or str(metadata.get("license", "")).split("\n")[0]
    return SAME.get(name, name) if name and name != "UNKNOWN" else "not said"


def page() -> str:
    """The text of launch/licenses.md."""
    text = HEAD
    base, extras = map(dependencies, declared())
    for title, libraries in (("The base installation", base), ("The extras", extras - base)):
        by_license: dict[str, list[str]] = defaultdict(list)
        for library in sorted(libraries):
            by_license[license_of(library)].append(library)
        rows = [f"| {name} | {', '.join(by_license[name])} |" for name in sorted(by_license)]
        text += "\n".join(["", f"## {title}", "", "| license | libraries |", "|---|---|", *rows, ""])
    return text


if __name__ == "__main__":
    print(page(), end="")
