"""The installed libraries against the versions that diffpipe, and the libraries that it needs, ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError

from packaging.requirements import Requirement

from diffpipe.experiment.doctor.findings import Finding

_CHECKED = ("diffpipe", "accelerate", "torch", "torchvision")
"""Distributions whose own needs are checked. A torchvision of another torch fails at its import, for one."""


def wrong_versions(requires: Callable[[str], list[str] | None], version: Callable[[str], str]) -> Iterator[Finding]:
    """A finding for each library that is missing, or of another version than something needs.

    requires, version: those of importlib.metadata.
    """
    for name in _CHECKED:
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # the one that needs it says so; diffpipe itself runs from a folder
        for need in needs:
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                installed = version(need.name)
            except PackageNotFoundError:
                yield Finding("error", f"{need.name} is not installed, and {name} needs it; {_install(need)}")
                continue
            if not need.specifier.contains(installed, prereleases=True):
                yield Finding(
                    "error",
                    f"{need.name} {installed} is installed, and {name} needs {need.specifier}; {_install(need)}",
                )


def _install(need: Requirement) -> str:
    return f"run: pip install '{need.name}{need.specifier}'"
