"""Start a few-step denoiser from a trained DDPM."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffpipe.config import validate
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import Built, Run, build_stage, open_pinned
from diffpipe.interfaces import ImageShape
from diffpipe.stages.adversarial import AdversarialConfig, TeacherConfig
from diffpipe.stages.ddpm import DENOISER, DDPMConfig
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime


def build_taught(experiment: Experiment, shape: ImageShape, runtime: Runtime, trained: Checkpoint | None) -> Built:
    """As `build_stage`, with the teacher's weights handed to the stage and its hash pinned in the experiment.

    A run that has a checkpoint has left its teacher behind: it may be gone. A collective. Raises UserError.
    """
    stage = experiment.stage
    assert isinstance(stage, AdversarialConfig)
    assert stage.teacher is not None
    weights: dict[str, Tensor] | None = None
    if trained is None:
        try:
            teacher = open_pinned(Path(stage.teacher.run), stage.teacher.sha256, runtime, "teacher")
            weights = _weights(stage, teacher, shape)
        except UserError as error:
            raise UserError(f"stage.teacher.run: {error}") from error
        sha256 = teacher.checkpoint.manifest_sha256
    else:
        before = trained.state.experiment["stage"].get("teacher") or {}
        sha256 = stage.teacher.sha256 or before.get("sha256")
    tree = experiment.model_dump(mode="json")
    tree["stage"]["teacher"] = TeacherConfig(run=stage.teacher.run, sha256=sha256).model_dump(mode="json")
    pinned = validate(Experiment, tree, source=experiment.run.dir)
    if weights is None:
        return build_stage(pinned, shape, runtime)
    return Built(pinned, runtime.comm.raise_on_all_ranks(lambda: stage.build(shape, weights)))


def _weights(stage: AdversarialConfig, teacher: Run, shape: ImageShape) -> dict[str, Tensor]:
    if not isinstance(teacher.experiment.stage, DDPMConfig):
        raise UserError(f"a run of stage.kind {teacher.experiment.stage.kind}; give one of stage.kind=ddpm")
    stage.fits(teacher.experiment.stage)
    if teacher.shape != shape:
        raise UserError(f"it was trained on images of {_words(teacher.shape)}, and these are of {_words(shape)}")
    return {name: value.cpu() for name, value in teacher.nets[DENOISER].state_dict().items()}


def _words(shape: ImageShape) -> str:
    return f"{shape.channels} × {shape.resolution} × {shape.resolution} in {shape.classes} classes"
