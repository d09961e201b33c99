"""The commands of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from diffpipe import plugins
from diffpipe.data.remote import allowed_bases
from diffpipe.errors import UserError
from diffpipe.experiment.sweep import sweep_commands
from tests.support.commands import CONFIG

START = ["diffpipe", "train", str(CONFIG)]


def test_each_combination_has_a_command_and_a_run_directory() -> None:
    words = ["optimizer.lr=1e-4,2e-4", "train.steps=9", "run.dir=runs/a b", "seed=0,1"]
    assert sweep_commands(str(CONFIG), words) == [
        [*START, "train.steps=9", f"optimizer.lr={lr}", f"seed={seed}", f"run.dir=runs/a b/lr={lr},seed={seed}"]
        for lr in ("1e-4", "2e-4")
        for seed in ("0", "1")
    ]
    assert sweep_commands(str(CONFIG), ["seed=0,1"]) == [
        [*START, f"seed={seed}", f"run.dir=runs/fashion_mnist/ddpm/seed={seed}"] for seed in ("0", "1")
    ]


def test_without_a_key_of_several_values_there_is_no_sweep() -> None:
    assert sweep_commands(str(CONFIG), ["seed=1", "data.resolution=[48,64]", "run.dir=a,b"]) == []


def test_the_words_of_a_run_directory_tell_the_runs_apart() -> None:
    def names(*words: str, sweeps: tuple[str, ...] = ()) -> list[str]:
        commands = sweep_commands(str(CONFIG), ["run.dir=r", *words], sweeps)
        return [words[-1].removeprefix("run.dir=r/") for words in commands]

    assert names("optimizer.betas=[0.9,0.95],[0.9,0.99]") == ["betas=0.9_0.95", "betas=0.9_0.99"]
    assert names("sample.every=1,2", "eval.every=3") == ["every=1", "every=2"]
    assert names("sample.every=1", "eval.every=3,4", "checkpoint.every=5,6") == [
        "eval.every=3,checkpoint.every=5",
        "eval.every=3,checkpoint.every=6",
        "eval.every=4,checkpoint.every=5",
        "eval.every=4,checkpoint.every=6",
    ]
    assert names(sweeps=("data.train=shards/a,../b c",)) == ["train=shards_a", "train=.._b_c"]


def test_plugins_and_allowed_folders_go_with_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed_bases, "_allowed", ["https://host/shards"])
    (tmp_path / "leaps.py").write_text("diffpipe_samplers = {'leap': len}\n")
    plugins.load(tmp_path / "leaps.py")
    words = ["--plugin", f"{tmp_path}/leaps.py", "--allow-base", "https://host/shards"]
    for command in sweep_commands(str(CONFIG), ["stage.sampler.kind=leap,ddim"]):
        assert command[3:7] == words


@pytest.mark.parametrize(
    ("overrides", "sweeps", "message"),
    [
        (["optimizer.lr=1e-4,x"], [], r"^optimizer\.lr is 'x'; give a number > 0$"),
        (["stage.network.groups=4,48"], [], r"^stage\.network: channels 32 must be a multiple of groups 48"),
        (["seed=1,2", "seed=3"], [], r"^seed is given 2 times; give all its values at once: seed=A,B"),
        (["seed=3"], ["seed=1,2"], "^seed is given 2 times"),
        (["seed=1,1"], [], r"^two runs of this sweep would lie in runs/fashion_mnist/ddpm/seed=1; "),
        ([], ["data.train=a/b,a_b"], r"^two runs of this sweep would lie in .*/train=a_b"),
        ([], ["run.dir=a,b"], r"^run\.dir cannot be swept"),
        ([], ["seed"], r"^--sweep seed: give a key with its values"),
        ([], ["data.train=" + "x" * 300 + ",y"], "too long for the name of a run directory"),
        (["train.setps=1,2", "seed=1,2"], [], r"^unknown key train\.setps; did you mean train\.steps\?"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_as_a_whole(overrides: list[str], sweeps: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep_commands(str(CONFIG), overrides, sweeps)


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\u2028", "\u202e"])
def test_a_command_that_would_not_be_one_plain_line_is_refused(tmp_path: Path, character: str) -> None:
    """A stranger's config could have a command of its own in run.dir, which a Slurm array runs by its line."""
    config = tmp_path / "config.yaml"
    text = yaml.safe_dump({"defaults": str(CONFIG.absolute()), "run": {"dir": f"runs/a{character}touch b #"}})
    config.write_text(text)
    with pytest.raises(UserError, match=r"^'run\.dir=runs/a.* has a line break or another control character"):
        sweep_commands(str(config), ["seed=0,1"])
