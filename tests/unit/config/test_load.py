"""Configs: files and overrides in, one clear line out where something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from diffpipe.config import Config, dump_yaml, load_config
from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import kinds_of
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.nn.unet import UNetConfig
from diffpipe.stages.ddpm_config import DDPMConfig

MINIMAL = {
    "run": {"dir": "runs/x"},
    "data": {"train": "shards", "batch_size": 8, "resolution": 8},
    "stage": {"kind": "ddpm"},
    "train": {"steps": 3},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def test_overrides_reach_nested_keys_and_keep_their_yaml_types(path: Path) -> None:
    words = [
        "train.steps=7",
        "stage.network.channel_mult=[1, 2]",
        "optimizer.lr=1e-4",
        "data.test=null",
        "data.labels=true",
    ]
    config = load_config(Experiment, path, words)
    assert config.train.steps == 7
    assert isinstance(config.stage, DDPMConfig)
    assert isinstance(config.stage.network, UNetConfig)
    assert config.stage.network.channel_mult == (1, 2)
    assert config.optimizer.lr == 1e-4
    assert config.data.test is None
    assert config.data.labels is True


def test_a_dumped_config_loads_as_an_equal_one(path: Path, tmp_path: Path) -> None:
    config = load_config(Experiment, path, ["optimizer.lr=3e-4"])
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load_config(Experiment, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("train.step=5", ["unknown key train.step", "did you mean train.steps?"]),
        ("stage.network.chanels=5", ["unknown key stage.network.chanels", "did you mean stage.network.channels?"]),
        ("zzz.qqq=5", ["unknown key zzz", "known: checkpoint, data, ema"]),
        ("train.steps=many", ["train.steps is 'many'; give an integer ≥ 1"]),
        ("train.steps=true", ["train.steps is 'true'; give an integer ≥ 1"]),
        ("train.steps=0", ["train.steps is 0; give an integer ≥ 1"]),
        ("optimizer.lr=nan", ["optimizer.lr", "'nan'"]),
        ("stage.network.groups=48", ["stage.network", "channels 128 must be a multiple of groups 48"]),
        ("train.precision=fp8", ["train.precision", "'bf16'", "'fp8'"]),
        ("stage.kind=ddpn", ["stage.kind", "'ddpm'", "'ddpn'"]),
        ("train.steps", ["'train.steps'", "key=value"]),
        ("train.steps.x=1", ["train.steps.x", "steps is a value"]),
        ("train.steps={", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(path: Path, word: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(Experiment, path, [word])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "word", ["train.steps=0", "train.step=5", "stage.kind=ddpn", "stage.network.groups=48", "zzz.q=5"]
)
def test_a_file_is_named_only_where_it_is_to_blame(path: Path, word: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(Experiment, path, [word])
    assert path.name not in str(error.value)
    path.write_text(yaml.safe_dump({**MINIMAL, "seed": -1}))
    for words in ([], ["train.steps=7"], [word]):
        with pytest.raises(UserError, match=r"^.*x\.yaml: "):
            load_config(Experiment, path, words)


def test_a_missing_key_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**MINIMAL, "train": {}}))
    with pytest.raises(UserError, match=r"x\.yaml: train\.steps is missing"):
        load_config(Experiment, tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"absent\.yaml: cannot read"):
        load_config(Experiment, tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        load_config(Experiment, tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match=r"list\.yaml: a config is a mapping"):
        load_config(Experiment, tmp_path / "list.yaml")


def _renamed(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Each old key of the config, its new one, and the kind of stage that it belongs to."""
    assert issubclass(model, Config)
    for old, new in model.renamed.items():
        yield f"{prefix}{old}", f"{prefix}{new}", None
    for key, field in fields_of(model).items():
        models = field_models(field)
        for one in models:
            kind = kinds_of(one)[0] if key == "stage" else None
            yield from ((old, new, kind or deeper) for old, new, deeper in _renamed(one, f"{prefix}{key}."))


@pytest.mark.parametrize(("old", "new", "kind"), sorted(set(_renamed(Experiment)), key=str))
def test_an_old_key_is_refused_with_its_new_name(path: Path, old: str, new: str, kind: str | None) -> None:
    words = [f"stage.kind={kind}"] if kind else []
    with pytest.raises(UserError, match=re.escape(f"{old} is called {new} now")):
        load_config(Experiment, path, [*words, f"{old}=1"])


@pytest.mark.parametrize(
    "text", ["1: 2\n", "seed: [" + "1, " * 50_000 + "]\n", "ema: " + "x" * 100_000 + "\n", "k" * 9000 + ": 1\n",
             "".join(f"k{i}: 1\n" for i in range(5000)), "null: 1\n", "2024-01-01: 1\n"]
)  # fmt: skip
def test_a_complaint_about_a_large_or_odd_value_is_short(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)
    with pytest.raises(UserError) as error:
        load_config(Experiment, path)
    assert len(str(error.value).removeprefix(str(path))) < 6000


def test_a_repeated_section_and_a_path_with_a_hash(path: Path) -> None:
    assert load_config(Experiment, path, ["run.dir=runs/exp #2"]).run.dir == "runs/exp #2"
    with pytest.raises(UserError, match=r"train\.steps is '100 #2'; "):
        load_config(Experiment, path, ["train.steps=100 #2"])
    path.write_text(path.read_text() + "\nseed: 1\nseed: 2\n")
    with pytest.raises(UserError, match=r"x\.yaml: not valid YAML: the key 'seed' comes twice"):
        load_config(Experiment, path)


def test_overrides_before_the_config_are_answered_with_the_order() -> None:
    with pytest.raises(UserError, match=r"^train\.steps=3: .* give the config first, and key=value words after it"):
        load_config(Experiment, "train.steps=3", ["config.yaml"])
