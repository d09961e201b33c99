"""`defaults:` in a config: what a file inherits from others, and the one line where it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffpipe.config import dump_yaml, load_config
from diffpipe.config.defaults import read_merged
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment

BASE = {
    "run": {"dir": "runs/x"},
    "data": {"train": "shards", "batch_size": 8, "resolution": 8},
    "stage": {
        "kind": "ddpm",
        "network": {"channels": 32, "dropout": 0.2},
        "sampler": {"kind": "ancestral", "eta": 0.5},
    },
    "optimizer": {"lr": 1e-3, "betas": [0.8, 0.9], "lr_factors": {"denoiser": 2}},
    "ema": {"decay": 0.9, "power": 2.0},
    "train": {"steps": 3},
}


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def child(tmp_path: Path, tree: dict[str, Any]) -> Path:
    write(tmp_path / "base.yaml", BASE)
    return write(tmp_path / "child.yaml", {"defaults": "base.yaml", **tree})


def merged(tmp_path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    return read_merged(Experiment, child(tmp_path, tree)).tree


def test_sections_merge_key_by_key_and_other_values_are_replaced(tmp_path: Path) -> None:
    tree = merged(
        tmp_path,
        {"seed": 4, "train": {"steps": 9, "log_every": 1}, "optimizer": {"betas": [0.5], "lr_factors": {"vae": 3}}},
    )
    assert tree == BASE | {
        "seed": 4,
        "train": {"steps": 9, "log_every": 1},
        "optimizer": {"lr": 1e-3, "betas": [0.5], "lr_factors": {"denoiser": 2, "vae": 3}},
    }
    assert merged(tmp_path, {"ema": None})["ema"] is None


@pytest.mark.parametrize(
    ("section", "of_child", "result"),
    [
        ("stage", {"kind": "vae"}, {"kind": "vae"}),
        ("stage", {"kind": "ddpm", "prediction": "v"}, BASE["stage"] | {"prediction": "v"}),
        ("stage.network", {"kind": "dit", "depth": 2}, {"kind": "dit", "depth": 2}),
        ("stage.network", {"kind": "unet", "blocks": 3}, {"kind": "unet", "channels": 32, "dropout": 0.2, "blocks": 3}),
        ("stage.network", {"blocks": 3}, {"channels": 32, "dropout": 0.2, "blocks": 3}),
        ("stage.sampler", {"kind": "heun"}, {"kind": "heun"}),
        ("stage.sampler", {"steps": 9}, {"kind": "ancestral", "eta": 0.5, "steps": 9}),
        ("optimizer", {"kind": "muon"}, {"kind": "muon"}),
        ("ema", {"kind": "power"}, {"kind": "power"}),
        ("ema", {"kind": "classical", "decay": 0.5}, {"kind": "classical", "decay": 0.5, "power": 2.0}),
    ],
)
def test_a_section_of_another_kind_inherits_nothing(
    tmp_path: Path, section: str, of_child: dict[str, Any], result: dict[str, Any]
) -> None:
    keys = section.split(".")
    tree: dict[str, Any] = of_child
    for key in reversed(keys):
        tree = {key: tree}
    value = merged(tmp_path, tree)
    for key in keys:
        value = value[key]
    assert value == result


def test_the_kind_of_a_section_is_known_wherever_it_is_named(tmp_path: Path) -> None:
    """The default kind of a network depends on the stage, which only the base names."""
    flow = {"kind": "flow", "dequantization": {"kind": "variational", "hidden": 8}}
    write(tmp_path / "base.yaml", {"stage": flow})
    path = write(tmp_path / "child.yaml", {"defaults": "base.yaml", "stage": {"dequantization": {"kind": "uniform"}}})
    assert read_merged(Experiment, path).tree["stage"] == {"kind": "flow", "dequantization": {"kind": "uniform"}}


def test_a_section_without_a_kind_is_of_the_default_one_and_merged_where_there_is_none(tmp_path: Path) -> None:
    network = {"width": 768}
    write(tmp_path / "base.yaml", {"stage": {"network": network, "timesteps": {"low_discrepancy": True}}})
    of_child = {"kind": "ddpm", "timesteps": {"kind": "log_normal"}}
    path = write(tmp_path / "child.yaml", {"defaults": "base.yaml", "stage": of_child})
    timesteps = {"kind": "log_normal", "low_discrepancy": True}
    assert read_merged(Experiment, path).tree["stage"] == {"kind": "ddpm", "network": network, "timesteps": timesteps}
    write(tmp_path / "child.yaml", {"defaults": "base.yaml", "stage": {"network": {"kind": "dit"}}})
    assert read_merged(Experiment, path).tree["stage"]["network"] == {"kind": "dit"}  # the base's is a UNet


def test_a_list_of_files_is_merged_in_order_and_each_is_relative_to_its_own(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    write(tmp_path / "size/large.yaml", {"defaults": "parts/wide.yaml", "stage": {"network": {"blocks": 4}}})
    write(tmp_path / "size/parts/wide.yaml", {"stage": {"network": {"channels": 64, "blocks": 9}}, "seed": 1})
    path = write(
        tmp_path / "experiments/a.yaml",
        {"defaults": ["../base.yaml", str(tmp_path / "size/large.yaml")], "run": {"dir": "runs/a"}},
    )
    experiment = load_config(Experiment, path, ["train.steps=5"])
    assert (
        experiment.stage.model_dump()["network"] | {"channels": 64, "blocks": 4, "dropout": 0.2}
        == (experiment.stage.model_dump()["network"])
    )
    assert (experiment.run.dir, experiment.seed, experiment.train.steps) == ("runs/a", 1, 5)


def test_the_resolved_config_has_the_merged_values_and_no_defaults(tmp_path: Path) -> None:
    experiment = load_config(Experiment, child(tmp_path, {"seed": 4}))
    write(tmp_path / "same.yaml", {**BASE, "seed": 4})
    assert dump_yaml(experiment) == dump_yaml(load_config(Experiment, tmp_path / "same.yaml"))
    assert "defaults" not in yaml.safe_load(dump_yaml(experiment))


def test_two_files_may_inherit_from_the_same_one(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    write(tmp_path / "a.yaml", {"defaults": "base.yaml", "seed": 1})
    write(tmp_path / "b.yaml", {"defaults": "base.yaml", "train": {"steps": 7}})
    path = write(tmp_path / "c.yaml", {"defaults": ["a.yaml", "b.yaml"]})
    assert read_merged(Experiment, path).tree == BASE | {"seed": 1, "train": {"steps": 7}}


def test_files_that_name_each_other_in_other_words_are_a_cycle(tmp_path: Path) -> None:
    path = write(tmp_path / "child.yaml", {"defaults": f"../{tmp_path.name}/base.yaml"})
    write(tmp_path / "base.yaml", {"defaults": str(path)})
    with pytest.raises(UserError, match="these files inherit from each other"):
        load_config(Experiment, path)
    (tmp_path / "base.yaml").unlink()
    (tmp_path / "base.yaml").symlink_to("base.yaml")
    with pytest.raises(UserError, match=r"base\.yaml: cannot read the config \(Too many levels of symbolic links\)"):
        load_config(Experiment, path)


@pytest.mark.parametrize("kind", ["chain", "doubling", "long"])
def test_too_many_files_are_refused_before_they_are_read(tmp_path: Path, kind: str) -> None:
    names = {"chain": "{}.yaml", "doubling": "[{0}.yaml, {0}.yaml]", "long": "[{0}.yaml, {0}.yaml]"}[kind]
    files = {"chain": 2000, "doubling": 30, "long": 2}[kind]
    for i in range(files):
        (tmp_path / f"{i}.yaml").write_text(f"defaults: {names.format(i + 1)}\n")
    write(tmp_path / f"{files}.yaml", BASE)
    if kind == "long":
        (tmp_path / "2.yaml").write_text("seed: 1 " + "#" * 600_000)
    with pytest.raises(
        UserError, match=r"^[^ ]*0\.yaml: its `defaults` lead to more than 100 files or 1048576 charact"
    ):
        load_config(Experiment, tmp_path / "0.yaml")


def test_only_a_file_is_inherited_from_and_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, what in (("pipe", "a FIFO"), ("/dev/zero", "a device"), (".", "a directory")):
        path = write(tmp_path / "child.yaml", {"defaults": place})
        with pytest.raises(
            UserError, match=rf"cannot read the config \({what}, not a regular file\); correct `defaults`"
        ):
            load_config(Experiment, path)
    with pytest.raises(UserError, match="a config is a mapping of sections"):
        load_config(Experiment, tmp_path / "pipe")


def test_a_run_directory_is_answered_with_its_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config \(Is a directory\); give a YAML file"):
        load_config(Experiment, tmp_path)
    write(tmp_path / "config.yaml", BASE)
    with pytest.raises(UserError, match=rf"\(Is a directory\); give {tmp_path}/config\.yaml"):
        load_config(Experiment, tmp_path)


def test_a_config_may_come_through_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, yaml.safe_dump(BASE).encode())
    os.close(writer)
    assert load_config(Experiment, f"/dev/fd/{reader}").run.dir == "runs/x"
    os.close(reader)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, r"cannot read the config \(No such file or directory\); correct `defaults` in {home}/child\.yaml"),
        ("- 1\n", "a config is a mapping of sections"),
        ("", "a config is a mapping of sections"),
        ("seed: 1\nseed: 2\n", r"not valid YAML: the key 'seed' comes twice in one section; keep one \(line 2"),
        ("a: [1", "not valid YAML: "),
        ("defaults: child.yaml\n", None),
        ("defaults: ./base.yaml\n", None),
        ("defaults: 3\n", "defaults is 3; give the path of a YAML file, or a list of them"),
        ("defaults: [[a.yaml]]\n", r"defaults is \[\['a\.yaml'\]\]; give the path"),
        ("defaults:\n", "defaults is None; give the path"),
    ],
)
def test_a_base_that_cannot_be_used_is_named_after_the_files_that_lead_to_it(
    tmp_path: Path, base: str | None, message: str | None
) -> None:
    path = write(tmp_path / "child.yaml", {"defaults": "base.yaml"})
    if base is not None:
        (tmp_path / "base.yaml").write_text(base)
    chain = f"{tmp_path}/child.yaml → {tmp_path}/base.yaml"
    if message is None:
        last = "child.yaml" if "child" in (base or "") else "base.yaml"
        chain, message = f"{chain} → {tmp_path}/{last}", "these files inherit from each other; remove `defaults` from"
    with pytest.raises(UserError, match="^" + chain.replace(".", r"\.") + ": " + message.format(home=tmp_path)):
        load_config(Experiment, path)


@pytest.mark.parametrize(
    ("base", "of_child", "message"),
    [
        ({"train": {"setps": 3}}, {}, "child.yaml → {home}/base.yaml: unknown key train.setps; did you mean"),
        ({}, {"train": {"setps": 3}}, "child.yaml: unknown key train.setps; did you mean"),
        ({"optimizer": {"betas": [0.1, "x"]}}, {}, "child.yaml → {home}/base.yaml: optimizer.betas.1 is 'x'; "),
        (
            {"stage": {"kind": "ddpm", "network": {"groups": 48}}},
            {},
            "child.yaml → {home}/base.yaml: stage.network: channels 128 must",
        ),
        ({"seed": -1}, {"seed": 1, "train": {"steps": 0}}, "child.yaml: train.steps is 0; "),
        ({"train": {}}, {}, "child.yaml: train.steps is missing; add it to the file"),
        (
            {"seed": -1},
            {"eval": {"n": 0}},
            "base.yaml: seed is -1; give an integer ≥ 0; {home}/child.yaml: eval.n is 0; ",
        ),
    ],
)
def test_a_wrong_value_is_answered_with_the_file_that_sets_it(
    tmp_path: Path, base: dict[str, Any], of_child: dict[str, Any], message: str
) -> None:
    path = child(tmp_path, of_child)
    write(tmp_path / "base.yaml", {**BASE, **base})
    with pytest.raises(UserError) as error:
        load_config(Experiment, path)
    assert message.format(home=tmp_path) in str(error.value)


def test_an_override_is_laid_over_all_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^train\.steps is 0; "):
        load_config(Experiment, child(tmp_path, {}), ["train.steps=0"])
