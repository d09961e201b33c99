"""Open what a stage needs beside its data, other runs and feature networks, and pin each by its hash."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from diffpipe.config import validate
from diffpipe.dependency import Dependency, TrainedStage
from diffpipe.errors import UserError, all_of
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.find_checkpoint import find_checkpoint, find_pinned_checkpoint
from diffpipe.files import user_path
from diffpipe.interfaces import ImageShape
from diffpipe.metrics.perceptual import FeatureMaps, build_feature_maps
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime

OpenStage = Callable[[Checkpoint], TrainedStage]


class Resolved(NamedTuple):
    """An experiment with the hash of each dependency in its config, and the dependencies by role.

    opened: what the stage's config builds with. runs: the checkpoints among them.
    """

    experiment: Experiment
    opened: dict[str, Any]
    runs: dict[str, Checkpoint]


def resolve(
    experiment: Experiment,
    shape: ImageShape,
    runtime: Runtime,
    open_stage: OpenStage,
    *,
    training: bool,
    trained: Checkpoint | None,
    named: Container[str] = (),
) -> Resolved:
    """Open what the stage needs now. A collective. Raises UserError, which names the config's key.

    training: whether the stage is to be trained, and needs more than to generate. trained: the run's own checkpoint
    where it goes on from one. It stays with the runs that it was trained with. named: keys of the config that the user
    gave. A run that only a stored config names is opened by its hash alone.
    """
    opened: dict[str, Any] = {}
    runs: dict[str, Checkpoint] = {}
    hashes: dict[str, str | None] = {}

    def open_one(dependency: Dependency) -> None:
        if dependency.kind == "features" and training:
            opened[dependency.role], hashes[dependency.section] = _features(dependency, shape, runtime)
            return
        if dependency.kind == "features":
            return
        generates = dependency.needed == "generation"
        if generates and not training and dependency.key not in named:
            return  # where it generates, the stage says what is missing
        sha256 = dependency.sha256 or (None if generates else _stored_hash(trained, dependency))
        if dependency.needed in ("always", "generation") or (training and trained is None):
            if sha256 is None and not training and dependency.key not in named:
                raise UserError(
                    f"{dependency.key} is {dependency.source}, without a hash: anything may lie there; give the place "
                    f"yourself ({dependency.key}=PATH, or --{dependency.role} PATH)"
                )
            checkpoint, stage = _open_run(dependency, sha256, runtime, open_stage)
            runs[dependency.role], opened[dependency.role] = checkpoint, stage
            sha256 = checkpoint.manifest_sha256
        hashes[dependency.section] = sha256

    all_of(*(functools.partial(open_one, dependency) for dependency in experiment.stage.dependencies()))
    return Resolved(_pinned(experiment, hashes), opened, runs)


def _open_run(
    dependency: Dependency, sha256: str | None, runtime: Runtime, open_stage: OpenStage
) -> tuple[Checkpoint, TrainedStage]:
    path, place = user_path(dependency.source), f"{dependency.key}=PATH"
    if dependency.needed in ("always", "generation"):
        place = f"{place}, or --{dependency.role} PATH for other commands than train"
    try:
        if sha256 is None:
            checkpoint = find_checkpoint(path, runtime)
        else:
            checkpoint = find_pinned_checkpoint(path, sha256, runtime, role=dependency.role, place=place)
        return checkpoint, open_stage(checkpoint)
    except UserError as error:
        raise UserError(f"{dependency.key}: {error}") from error


def _features(dependency: Dependency, shape: ImageShape, runtime: Runtime) -> tuple[FeatureMaps, str]:
    def build() -> tuple[FeatureMaps, str]:
        try:
            network, sha256 = build_feature_maps(dependency.source, shape.resolution, device=runtime.device)
        except UserError as error:
            raise UserError(f"{dependency.key}: {error}") from error
        if dependency.sha256 not in (None, sha256):
            raise UserError(
                f"{dependency.section}.sha256 is {dependency.sha256}, and {dependency.source} has {sha256}; bring that "
                f"network back, or leave the hash out to begin with this one"
            )
        return network, sha256

    return runtime.comm.raise_on_all_ranks(build)


def _stored_hash(trained: Checkpoint | None, dependency: Dependency) -> str | None:
    """The hash that the run's own checkpoint has in its config."""
    section: Any = trained.state.experiment if trained is not None else None
    for part in dependency.section.split("."):
        section = (section or {}).get(part)
    return (section or {}).get("sha256")


def _pinned(experiment: Experiment, hashes: dict[str, str | None]) -> Experiment:
    if not hashes:
        return experiment
    tree = experiment.model_dump(mode="json")
    for section, sha256 in hashes.items():
        place = tree
        for part in section.split("."):
            place = place[part]
        place["sha256"] = sha256
    return validate(Experiment, tree, source=experiment.run.dir)
