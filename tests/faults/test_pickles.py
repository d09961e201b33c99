"""A checkpoint from a stranger is data: nothing in it is ever run."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import HOME, diffpipe
from tests.support.training_jobs import assert_equals_uninterrupted, train_fails, train_to_end

# Unpickling any of them would be what torch.distributed.checkpoint and torch.load do with files of these names.
NAMES = [".metadata", "__0_0.distcp", "model.pt", "optimizer.pth", "scheduler.bin", "state.pkl"]
PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}


class Trap:
    """When unpickled, it makes a directory."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def rewrite_manifest(checkpoint: Path) -> None:
    """Give it a manifest that lists every file correctly."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in checkpoint.iterdir()
        if path.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def armed(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A run with two checkpoints, the marker that must not appear, and what would make it."""
    train_to_end(tmp_path / "run", "train.steps=2", "checkpoint.every=1")
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Trap(marker)))
    marker.rmdir()  # the trap works
    return tmp_path / "run", marker, pickle.dumps(Trap(marker))


def test_pickles_beside_the_shards_are_never_loaded(
    armed: tuple[Path, Path, bytes], uninterrupted: Callable[[int], Path], tmp_path: Path
) -> None:
    run, marker, trap = armed
    newest = run / "checkpoints" / "step-00000002"
    for name in NAMES:
        (newest / name).write_bytes(trap)
    rewrite_manifest(newest)
    exported = diffpipe("export", newest, tmp_path / "exported")
    assert exported.returncode == 0, exported.stderr
    assert "resuming from" in train_to_end(run, "train.steps=3")
    assert_equals_uninterrupted(run, uninterrupted(0), 3)

    stranger = run / "checkpoints" / "step-00000003"  # and where the manifest does not list them
    for name in NAMES:
        (stranger / name).write_bytes(trap)
    assert diffpipe("export", stranger, tmp_path / "again").returncode == 2
    assert "warning" in train_to_end(run, "train.steps=4")
    assert_equals_uninterrupted(run, uninterrupted(0), 4)
    assert not marker.exists()


@pytest.mark.parametrize("victim", ["*.safetensors", "state.json", "manifest.json"])
def test_a_pickle_under_the_name_of_a_file_of_the_checkpoint_is_never_loaded(
    armed: tuple[Path, Path, bytes], victim: str
) -> None:
    run, marker, trap = armed
    for checkpoint in run.glob("checkpoints/step-*"):
        (path,) = checkpoint.glob(victim)
        path.write_bytes(trap)
        if victim != "manifest.json":
            rewrite_manifest(checkpoint)
    train_fails(run, "train.steps=3")
    assert not marker.exists()
    assert diffpipe("export", run, run.parent / "exported").returncode == 2
    assert not marker.exists()


def test_no_module_unpickles_but_the_one_that_knows_plain_data_alone() -> None:
    # CIFAR-10 is published as pickles. What that reader refuses, tests/unit/data/packing/test_cifar.py tries.
    plain = HOME / "diffpipe" / "data" / "packing" / "pickles.py"
    paths = sorted((HOME / "diffpipe").rglob("*.py"))
    assert not [offence for path in paths if path != plain for offence in offending(path)]
    assert [offence.partition(" ")[2] for offence in offending(plain)] == ["imports ['pickle']"]
    assert not {"pickle.load", "pickle.loads"} & {
        ast.unparse(node.func) for node in ast.walk(ast.parse(plain.read_text())) if isinstance(node, ast.Call)
    }


def offending(path: Path) -> Iterator[str]:
    """Imports of what unpickles, and calls that would: `torch.load` without `weights_only`, `allow_pickle`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if PICKLING & {part for name in names for part in name.split(".")}:
            yield f"{path}:{node.lineno} imports {names}"  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            call = ast.unparse(node.func)
            if call == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{path}:{node.lineno} calls torch.load without weights_only=True"
            if keywords.get("weights_only") == "False" or keywords.get("allow_pickle") == "True":
                yield f"{path}:{node.lineno} {call} unpickles"


def test_the_search_for_offences_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text(
        "import pickle\nfrom torch import load, multiprocessing\nfrom cloudpickle import loads\n"
        "torch.load(f)\ntorch.load(f, weights_only=False)\nnp.load(f, allow_pickle=True)\n"
        "torch.load(f, weights_only=True)\n"
    )
    assert sorted({int(offence.split(":")[1].split()[0]) for offence in offending(source)}) == [1, 3, 4, 5, 6]
