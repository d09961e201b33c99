"""Plug-ins: parts by name, from modules of the command line and from installed packages; configs only name them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from diffpipe import plugins
from diffpipe.config import dump_yaml, load_config
from diffpipe.config.reference import as_text
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment

MODULE = '''
"""A stage and a network that do nothing."""
from typing import Literal
from pydantic import Field
from diffpipe.config import Config
from diffpipe.stages.config import StageConfig


class Mine(StageConfig):
    """My stage."""

    kind: Literal["mine"]
    """Mine."""
    width: int = Field(default=8, ge=1)
    """Its width."""
    sampler: Config = Config()
    """Has no keys."""


class MLP(Config):
    """My network."""

    kind: Literal["mlp"]
    """An MLP."""
    hidden: int = Field(default=8, ge=1)
    """Its width."""


diffpipe_stages = {"mine": Mine, "wrong": MLP}
diffpipe_networks = {"mlp": MLP}
diffpipe_samplers = {"leap": len}
'''
CONFIG = {
    "run": {"dir": "runs/x"},
    "data": {"train": "shards", "batch_size": 8, "resolution": 8},
    "stage": {"kind": "ddpm"},
    "train": {"steps": 3},
}


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in {"my_parts", "other_parts", "empty", "broken"}:
            del sys.modules[name]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "my_parts.py"
    path.write_text(MODULE)
    return str(path)


def test_a_config_alone_imports_nothing(config: Path, tmp_path: Path, module: str) -> None:
    sys_path = [str(tmp_path), *sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys_path)
        with pytest.raises(UserError, match=r"stage\.kind is 'my_parts'; it is one of .*'ddpm'.*--plugin MODULE"):
            load_config(Experiment, config, ["stage.kind=my_parts"])
    assert "my_parts" not in sys.modules


def test_a_plugins_stage_is_validated_and_dumped(config: Path, module: str, tmp_path: Path) -> None:
    plugins.load(module)
    experiment = load_config(Experiment, config, ["stage.kind=mine", "stage.width=5"])
    assert type(experiment.stage).__name__ == "Mine"
    (tmp_path / "dumped.yaml").write_text(dump_yaml(experiment))
    assert yaml.safe_load(dump_yaml(experiment))["stage"] == {"kind": "mine", "width": 5, "sampler": {}}
    assert load_config(Experiment, tmp_path / "dumped.yaml") == experiment
    assert "stage.width  (int ≥ 1; default 8)" in as_text(Experiment)


def test_a_plugins_network_and_sampler_stand_beside_the_built_in_ones(config: Path, module: str) -> None:
    plugins.load(module)
    words = ["stage.network.kind=mlp", "stage.network.hidden=3", "stage.sampler.kind=leap"]
    stage = load_config(Experiment, config, words).stage.model_dump(mode="json")
    assert stage["network"] == {"kind": "mlp", "hidden": 3}
    assert stage["sampler"]["kind"] == "leap"
    stage = load_config(Experiment, config, ["stage.network.channels=64"]).stage.model_dump(mode="json")
    assert stage["network"]["kind"] == "unet"
    assert stage["network"]["channels"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage.kind=mine", "stage.widht=5"], r"unknown key stage\.widht; did you mean stage\.width\?"),
        (["stage.kind=mine", "stage.width=0"], r"stage\.width is 0; give an integer ≥ 1"),
        (["stage.network.kind=mlp", "stage.network.hiden=5"], r"unknown key stage\.network\.hiden; did you mean"),
        (["stage.network.kind=uvit"], r"stage\.network\.kind is 'uvit'; it is one of 'unet', .*, 'mlp'; others come"),
        (["stage.sampler.kind=zzz"], r"stage\.sampler\.kind is 'zzz'; it is one of 'ancestral', .*'unipc', 'leap'"),
        (
            ["stage.kind=yours"],
            r"stage\.kind is 'yours'; it is one of 'adversarial', .*, 'mine', 'wrong'; others come with",
        ),
        (["stage.kind=wrong"], r"stage: the plug-in's wrong must be a config class with the field `kind: Literal"),
        (["stage.kind=[1]"], r"stage\.kind is \[1\]; it is one of"),
    ],
)
def test_errors_within_plugins_name_the_key(config: Path, module: str, words: list[str], message: str) -> None:
    plugins.load(module)
    with pytest.raises(UserError, match=message):
        load_config(Experiment, config, words)


def test_an_entry_point_is_imported_when_it_is_named(
    config: Path, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    installed = {"stages": [EntryPoint("mine", "my_parts:Mine", "diffpipe.stages")]}
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: installed.get(group.removeprefix("diffpipe."), [])
    )
    plugins._entries.cache_clear()
    load_config(Experiment, config)
    assert "my_parts" not in sys.modules
    assert plugins.names("stages") == ["mine"]
    assert load_config(Experiment, config, ["stage.kind=mine"]).stage.kind == "mine"
    assert "my_parts" in sys.modules
    plugins._entries.cache_clear()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.py", "x = 1", r"holds no parts; give it a dictionary called one of diffpipe_stages, "),
        ("broken.py", "import absent_module", r"cannot be imported \(ModuleNotFoundError: No module named 'absent"),
        ("leaves.py", "raise SystemExit('done\\nfor now')", r"\(SystemExit: done for now\); correct the file"),
        ("number.py", "diffpipe_stages = {'zzz': 1}", "zzz in diffpipe_stages is 1, and not a class or a function"),
        ("other_parts.py", "diffpipe_stages = {'mine': int}", r"another plug-in has mine in stages already"),
    ],
)
def test_a_module_that_is_no_plugin_is_refused(tmp_path: Path, module: str, name: str, text: str, message: str) -> None:
    plugins.load(module)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        plugins.load(str(tmp_path / name))
    with pytest.raises(UserError, match=r"plug-in absent\.py: cannot be imported"):
        plugins.load("absent.py")


def test_a_module_is_loaded_once_and_passed_on_to_other_processes(module: str) -> None:
    plugins.load(module)
    plugins.load(module)
    assert plugins.options() == ["--plugin", module]


def test_a_file_that_was_refused_is_loaded_once_it_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "corrected_later.py"
    for text in ("raise RuntimeError('half written')", "diffpipe_stages = {}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"half written|holds no parts"):
            plugins.load(path)
    path.write_text(MODULE, encoding="utf-8")
    plugins.load(path)
    assert "mine" in plugins.names("stages")
