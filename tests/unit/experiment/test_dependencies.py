"""Other runs and feature networks are opened when they are needed, and pinned by their hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe import plugins
from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.experiment.dependencies import resolve
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime
from tests.support.run_states import run_state
from tests.support.runs import saved_run
from tests.support.stage_cases import CASES
from tests.support.toy_stages import Toy

SHAPE = ImageShape(1, square(8), 10)


def open_stage(checkpoint: Checkpoint) -> TrainedStage:
    return TrainedStage(checkpoint.path, None, SHAPE, Toy(), {}, None)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is needed, with checkpoints of steps 1 and 2."""
    home = tmp_path_factory.mktemp("runs") / "other"
    saved_run(home, steps=(1, 2))
    return home


def opened_steps(runtime: Runtime, experiment: Any, *, training: bool, trained: Checkpoint | None) -> dict[str, int]:
    runs = resolve(experiment, SHAPE, runtime, open_stage, training=training, trained=trained).runs
    return {role: checkpoint.step for role, checkpoint in runs.items()}


def test_the_newest_checkpoint_is_opened_and_pinned_and_a_resumed_run_stays_with_its_own(
    other: Path, runtime: Runtime
) -> None:
    experiment = CASES["latent_ddpm"].experiment("run.dir=x", f"stage.codec.run={other}", "stage.codec.sha256=null")
    first = resolve(experiment, SHAPE, runtime, open_stage, training=True, trained=None)
    assert first.runs["codec"].step == 2
    assert first.opened["codec"].path == first.runs["codec"].path
    assert first.experiment.stage.codec.sha256 == first.runs["codec"].manifest_sha256  # pyright: ignore
    older = resolve(
        CASES["latent_ddpm"].experiment(f"stage.codec.run={other / 'checkpoints' / 'step-00000001'}"),
        SHAPE,
        runtime,
        open_stage,
        training=True,
        trained=None,
    ).experiment
    tree = older.model_dump(mode="json")
    trained = Checkpoint(Path("x"), run_state(5, experiment=tree), "0" * 64)
    assert opened_steps(runtime, experiment, training=True, trained=trained) == {"codec": 1}
    assert opened_steps(runtime, experiment, training=False, trained=trained) == {"codec": 1}


def test_a_run_that_only_the_start_needs_is_opened_then_alone(other: Path, runtime: Runtime) -> None:
    teacher = f"stage.teacher={{run: {other}}}"
    experiment = CASES["adversarial"].experiment("run.dir=x", teacher)
    assert opened_steps(runtime, experiment, training=True, trained=None) == {"teacher": 2}
    trained = Checkpoint(Path("x"), run_state(5, experiment=experiment.model_dump(mode="json")), "0" * 64)
    assert opened_steps(runtime, experiment, training=True, trained=trained) == {}
    assert opened_steps(runtime, experiment, training=False, trained=None) == {}


def test_a_run_that_is_missing_is_named_by_its_key(tmp_path: Path, runtime: Runtime) -> None:
    experiment = CASES["latent_ddpm"].experiment(f"stage.codec.run={tmp_path / 'absent'}", "stage.codec.sha256=null")
    with pytest.raises(UserError, match=r"^stage\.codec\.run: .*absent: no such directory"):
        resolve(experiment, SHAPE, runtime, open_stage, training=True, trained=None)
    pinned = CASES["latent_ddpm"].experiment(f"stage.codec.run={tmp_path / 'absent'}", f"stage.codec.sha256={'a' * 64}")
    with pytest.raises(UserError, match=r"stage\.codec\.run=PATH, or --codec PATH for other commands than train"):
        resolve(pinned, SHAPE, runtime, open_stage, training=False, trained=None)


def maps(x: Tensor) -> list[Tensor]:
    return [x]


def test_a_feature_network_is_opened_for_training_alone_and_held_to_its_hash(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins._parts, "feature_networks", {"maps": maps})
    experiment = CASES["vae"].experiment("run.dir=x", "stage.perceptual={features: maps}")
    resolved = resolve(experiment, SHAPE, runtime, open_stage, training=True, trained=None)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(resolved.opened["features"](x)[0], x)
    sha256 = resolved.experiment.stage.perceptual.sha256  # pyright: ignore
    assert sha256 is not None
    resolve(resolved.experiment, SHAPE, runtime, open_stage, training=True, trained=None)
    assert resolve(experiment, SHAPE, runtime, open_stage, training=False, trained=None).opened == {}
    wrong = CASES["vae"].experiment("run.dir=x", f"stage.perceptual={{features: maps, sha256: {'c' * 64}}}")
    with pytest.raises(UserError, match=rf"stage\.perceptual\.sha256 is {'c' * 64}, and maps has {sha256}"):
        resolve(wrong, SHAPE, runtime, open_stage, training=True, trained=None)
