"""The JSON schema of a config, by a validator that knows nothing of the package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from diffpipe import plugins
from diffpipe.config import dump_yaml, load_config
from diffpipe.config.json_schema import json_schema
from diffpipe.experiment.config import Experiment

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
COMPLETE = "{run: {dir: x}, data: {train: x, batch_size: 8, resolution: 8}, stage: {kind: ddpm}, train: {steps: 3}}"


@pytest.fixture(scope="module")
def committed() -> Draft202012Validator:
    schema = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_committed_schema_is_current() -> None:
    text = json.dumps(json_schema(Experiment), indent=2, ensure_ascii=False) + "\n"
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == text, (
        "configs/schema.json is out of date: replace it by the output of `diffpipe config schema`"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_names_the_schema_and_passes_it(path: Path, committed: Draft202012Validator) -> None:
    text = path.read_text(encoding="utf-8")
    _, equals, name = text.partition("\n")[0].partition("# yaml-language-server: $schema=")
    assert equals
    assert (path.parent / name).resolve() == CONFIGS / "schema.json"
    assert [*committed.iter_errors(yaml.safe_load(text))] == []
    assert [*committed.iter_errors(yaml.safe_load(dump_yaml(load_config(Experiment, path))))] == []


def mistyped(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all keys of a config, except those of mappings from names to numbers."""
    below = [
        found
        for key, value in tree.items()
        if isinstance(value, dict) and key != "lr_factors"
        for found in mistyped(value, (*path, key))
    ]
    return [*((*path, key) for key in tree if key != "kind"), *below]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_of_a_config_that_is_mistyped_fails(path: Path, committed: Draft202012Validator) -> None:
    text = path.read_text(encoding="utf-8")
    for keys in mistyped(yaml.safe_load(text)):
        tree = yaml.safe_load(text)
        section = tree
        for key in keys[:-1]:
            section = section[key]
        section[f"{keys[-1]}s"] = section.pop(keys[-1])
        assert not committed.is_valid(tree), keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COMPLETE, None),
        ("{defaults: a.yaml}", None),
        ("{defaults: [a.yaml, b.yaml], stage: {network: {blocks: 3}}}", None),
        ("{defaults: a.yaml, ema: {decay: 0.9}}", None),
        ("{defaults: a.yaml, stage: {sampler: {kind: heun}}}", None),
        ("{defaults: a.yaml, data: {resolution: [48, 64]}}", None),
        ("{defaults: 3}", "3 is not valid under any of the given schemas"),
        ("{seed: 1}", "'run' is a required property"),
        ("{defaults: a.yaml, stage: {kind: ddpn}}", "'ddpn'"),
        ("{defaults: a.yaml, stage: {network: {kind: unte}}}", "'unte'"),
        ("{defaults: a.yaml, stage: {network: {blokcs: 3}}}", "blokcs"),
        ("{defaults: a.yaml, stage: {kind: vae, prediction: v}}", "'prediction' was unexpected"),
        ("{defaults: a.yaml, stage: {kind: ddpm, network: {kind: dit, channels: 3}}}", "'channels' was unexpected"),
        ("{defaults: a.yaml, stage: {kind: ddpm, sampler: {kind: heuun}}}", "'heuun'"),
        ("{defaults: a.yaml, train: {steps: 0}}", "0 is less than the minimum of 1"),
        ("{defaults: a.yaml, train: {steps: many}}", "'many' is not of type 'integer'"),
        ("{defaults: a.yaml, default: b.yaml}", "'default' was unexpected"),
    ],
)
def test_it_tells_right_from_wrong(committed: Draft202012Validator, text: str, message: str | None) -> None:
    messages = [*reasons(committed.iter_errors(yaml.safe_load(text)))]
    assert bool(messages) == bool(message)
    assert message is None or any(message in reason for reason in messages)


def reasons(errors: Iterable[ValidationError]) -> Iterator[str]:
    """The messages of errors, and of those in the members of a union."""
    for error in errors:
        yield error.message
        yield from reasons(error.context)


def test_keys_have_descriptions_and_kinds_are_listed() -> None:
    schema = json_schema(Experiment)
    definitions = schema["$defs"]
    assert schema["properties"]["stage"]["discriminator"]["mapping"]["vae"] == "#/$defs/VAEConfig"
    assert "ddim" in definitions["GuidedSamplerConfig"]["properties"]["kind"]["enum"]
    assert "heun" in definitions["GuidedSamplerConfig"]["properties"]["kind"]["description"]
    for name, definition in definitions.items():
        for key, value in definition.get("properties", {}).items():
            described = value.get("description") or ("$ref" in value and definitions[value["$ref"][8:]]["description"])
            assert described, f"{name}.{key}"


def test_the_schema_has_the_kinds_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "my_kinds.py").write_text(
        "from typing import Literal\nfrom diffpipe.config import Config\n\n\n"
        "class MLP(Config):\n    kind: Literal['mlp']\n    hidden: int = 8\n\n\n"
        "diffpipe_networks = {'mlp': MLP}\ndiffpipe_samplers = {'leap': len}\n"
    )
    plugins.load(tmp_path / "my_kinds.py")
    validator = Draft202012Validator(json_schema(Experiment))
    for stage in ("network: {kind: mlp, hidden: 3}", "sampler: {kind: leap}"):
        assert validator.is_valid(yaml.safe_load(f"{{defaults: a.yaml, stage: {{kind: ddpm, {stage}}}}}"))
    assert not validator.is_valid(yaml.safe_load("{defaults: a.yaml, stage: {kind: ddpm, network: {kind: mlp, h: 3}}}"))
