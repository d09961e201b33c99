"""The versions that are installed, and those that are needed."""

from __future__ import annotations

from importlib import metadata

import pytest

from diffpipe.experiment.doctor.libraries import wrong_versions

NEEDS = {
    "diffpipe": ["torch<3,>=2.13", "numpy>=2", "s3fs>=2024; extra == 's3'"],
    "torchvision": ["torch==2.14.1", "colorama; sys_platform == 'win32'"],
    "torch": None,
}
VERSIONS = {"torch": "2.14.1+cpu", "numpy": "2.4.0"}


def requires(name: str) -> list[str] | None:
    if name not in NEEDS:
        raise metadata.PackageNotFoundError(name)
    return NEEDS[name]


def findings(**versions: str | None) -> list[str]:
    installed = VERSIONS | versions

    def version(name: str) -> str:
        found = installed.get(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    return [finding.message for finding in wrong_versions(requires, version)]


def test_what_is_needed_and_there_is_no_finding() -> None:
    assert findings() == []
    assert [*wrong_versions(metadata.requires, metadata.version)] == []


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"numpy": "1.26.4"}, "numpy 1.26.4 is installed, and diffpipe needs >=2; run: pip install 'numpy>=2'"),
        ({"numpy": None}, "numpy is not installed, and diffpipe needs it; run: pip install 'numpy>=2'"),
        (
            {"torch": "2.13.0"},
            "torch 2.13.0 is installed, and torchvision needs ==2.14.1; run: pip install 'torch==2.14.1'",
        ),
    ],
)
def test_another_version_and_a_missing_library_are_errors(versions: dict[str, str | None], message: str) -> None:
    assert findings(**versions) == [message]
