"""Opened runs: the averaged or the trained weights, and overrides that the stage can take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.experiment import run as run_module
from diffpipe.experiment.find_checkpoint import find_checkpoint
from diffpipe.experiment.run import build_stage, generated_images, open_codec, open_run, reconfigured
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise, opened_run, saved_run
from tests.support.stage_cases import CASES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trained weights are all 4, and whose averaged weights are all 4.5."""
    home = tmp_path_factory.mktemp("runs") / "photos"
    saved_run(home, steps=(4,))
    return home


@pytest.mark.parametrize(("raw", "value"), [(False, 4.5), (True, 4.0)])
def test_a_run_has_its_averaged_weights_or_the_trained_ones(
    home: Path, runtime: Runtime, raw: bool, value: float
) -> None:
    run = open_run(home, [], runtime, raw=raw)
    for p in run.nets["denoiser"].parameters():
        assert torch.equal(p, torch.full_like(p, value))
        assert not p.requires_grad
    assert not run.nets["denoiser"].training
    assert run.describe()["weights"] == ("raw" if raw else "ema")
    assert run.shape == ImageShape(1, square(8), 10)


@pytest.mark.parametrize(("raw", "weights"), [(False, "ema"), (True, "raw")])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, runtime: Runtime, raw: bool, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (torch.nan, torch.inf):
        home = tmp_path / str(value)
        with monkeypatch.context() as patch:
            filled = torch.full_like
            patch.setattr(torch, "full_like", lambda t, _, value=value, filled=filled: filled(t, value))
            saved_run(home)
        with pytest.raises(UserError, match=rf"step-00000001: denoiser\.\S+ of its {weights} weights .* not finite"):
            open_run(home, [], runtime, raw=raw)


def test_a_state_of_a_billion_classes_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    saved_run(tmp_path / "run", "stage.conditional=true")
    found = find_checkpoint(tmp_path / "run", runtime)
    state = found.state.model_copy(update={"shape": found.state.shape.model_copy(update={"classes": 10**9})})
    forged = replace(found, state=state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "find_checkpoint", lambda path, runtime: forged)
        with pytest.raises(UserError, match=r"with 1000000000 classes, have more than the \d+ values that it holds"):
            open_run(tmp_path / "run", [], runtime)


def test_a_run_is_called_by_its_directory_and_step(home: Path, runtime: Runtime) -> None:
    run = open_run(home, [], runtime)
    assert (run.home, run.title) == (home, "photos, step 4")
    assert open_run(run.checkpoint.path, [], runtime).title == run.title


def test_a_class_is_given_by_its_number_or_its_name(home: Path, runtime: Runtime) -> None:
    unnamed = open_run(home, [], runtime)
    assert [unnamed.class_label(label) for label in (None, 3, "3")] == [None, 3, 3]
    with pytest.raises(UserError, match=r"^label cat: .* has no names of classes; give the class's number"):
        unnamed.class_label("cat")
    unlabelled = replace(unnamed, shape=unnamed.shape._replace(classes=0))
    assert unlabelled.class_label(None) is None
    for label in ("cat", "1", 1):
        with pytest.raises(UserError, match=rf"^label {label}: this run was trained without labels; give none"):
            unlabelled.class_label(label)
    run = open_run(home, ["data.class_names=[cat, dog, '007']"], runtime)
    assert [run.class_label(label) for label in ("cat", "dog", "1", "007")] == [0, 1, 1, 2]
    with pytest.raises(UserError, match=r"^label dogs: no class .*did you mean dog\?"):
        run.class_label("dogs")
    with pytest.raises(UserError, match="its classes are cat, dog, 007"):
        run.class_label("9" * 5000)


def test_opening_a_run_draws_no_random_numbers(home: Path, runtime: Runtime) -> None:
    state = torch.get_rng_state()
    open_run(home, [], runtime)
    assert torch.equal(torch.get_rng_state(), state)


def test_overrides_change_the_stage_and_keep_the_networks(home: Path, runtime: Runtime) -> None:
    run = open_run(home, ["stage.sampler.steps=2"], runtime)
    assert run.describe()["sampler"]["steps"] == 2
    other = reconfigured(run, ["stage.sampler.steps=3"], runtime)
    assert other.describe()["sampler"]["steps"] == 3
    assert other.nets is run.nets


def test_an_option_of_another_kind_of_stage_is_refused(home: Path, runtime: Runtime) -> None:
    for word, message in [
        ("stage.sampler.temperature=0.5", r"^temperature is for the sampling of a flow, VAE, .* of stage\.kind ddpm"),
        ("stage.sampler.importance_samples=5", "^importance_samples is for a VAE's bound"),
        ("stage.codec.run=x", "^codec is for a latent diffusion"),
    ]:
        with pytest.raises(UserError, match=message):
            open_run(home, [word], runtime)


def test_a_run_that_encodes_nothing_is_refused_with_the_kinds_that_do(home: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"photos is a run of stage\.kind=ddpm, .* latents, or of stage\.kind=vq"):
        open_codec(home, runtime)


def test_the_images_of_a_run_are_the_stages_with_the_runs_protocol(runtime: Runtime) -> None:
    run = opened_run(Noise(), Path("runs/toy"))
    source = generated_images(run, runtime, n=9, seed=2, label=1)
    assert torch.equal(source.images(range(3)), torch.ones(3, 1, 8, 8, dtype=torch.uint8))
    assert source.describe().items() >= run.describe().items()


def test_a_stage_without_dependencies_is_built_from_its_config_alone(runtime: Runtime) -> None:
    experiment = CASES["vae"].experiment("run.dir=x")
    result = build_stage(experiment, ImageShape(1, square(8), 10), runtime, training=True)
    assert (result.experiment, result.runs) == (experiment, {})
    assert result.stage.networks().keys() == CASES["vae"].stage().networks().keys()
