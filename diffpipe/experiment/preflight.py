"""Checks before the first step of a training."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path

import numpy as np

from diffpipe.data.decode.image import image_resolution
from diffpipe.data.decode.latents import LATENTS, are_latents, encoder, from_bytes
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet, number_of_classes
from diffpipe.data.loader import mixture
from diffpipe.data.loader.reader import Reader
from diffpipe.data.loader.stream import check
from diffpipe.errors import UserError, all_of
from diffpipe.evaluation.reconstruction import originals
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.resources import JobSize
from diffpipe.interfaces import Generates, ImageShape, Stage
from diffpipe.metrics.names import parse_metric
from diffpipe.output import utf8
from diffpipe.plural import plural

_SAMPLED = 64


def open_data(experiment: Experiment, world: int) -> tuple[ShardSet, ImageShape]:
    """The shards of data.train, and the shape of their images for a stage. Raises UserError."""
    data = experiment.data
    if data.train == []:  # as in the config of an imported run
        raise UserError(f"{experiment.run.dir}: its config names no shards to train on; give data.train=PATH")
    shards = mixture.load_sources(data.train, data.sources, data.shard_cache)
    check(data, shards, world, experiment.train.accumulate)
    return shards, ImageShape(data.channels, data.resolution, number_of_classes(shards) if data.labels else 0)


def with_class_names(experiment: Experiment, shards: ShardSet) -> Experiment:
    """The experiment with the names of its classes, where it has labels and the index of the shards names them."""
    data = experiment.data
    if not data.labels or data.class_names or not shards.classes:
        return experiment
    return experiment.model_copy(
        update={"data": data.model_copy(update={"class_names": tuple(map(utf8, shards.classes))})}
    )


def require_fit(experiment: Experiment, stage: Stage, shards: ShardSet) -> None:
    """Raise UserError where the stage, the shards, and the scores during training do not fit each other."""
    latents, config = are_latents(shards), experiment.eval
    all_of(
        lambda: require_codec_of_latents(experiment, shards) if latents else None,
        lambda: _require_scored_stage(experiment, stage, latents=latents) if config.every else None,
        lambda: require_scores(experiment, shards),
        lambda: originals(experiment, stage) if config.reconstruction else None,
    )


def _require_scored_stage(experiment: Experiment, stage: Stage, *, latents: bool) -> None:
    if latents:
        raise UserError("eval.every needs images in data.train for the floor of a score; set eval.every=0")
    if not isinstance(stage, Generates):
        raise UserError(
            f"eval.every scores generated images, and stage.kind {experiment.stage.kind} generates none; "
            f"set eval.every=0"
        )


def require_scores(experiment: Experiment, shards: ShardSet | None) -> None:
    """Raise UserError where scores during training lack images, or where eval.metrics names none that is known.

    shards: those of data.train; None where they cannot be opened.
    """
    config, data = experiment.eval, experiment.data

    def require_test() -> None:
        if data.test is None:
            raise UserError("eval.every needs images to compare with; set data.test to held-out shards")
        shard_set.load(data.test, cache=data.shard_cache)

    def require_enough() -> None:
        if shards is not None and config.n > shards.total:
            raise UserError(
                f"eval.n is {config.n}, and data.train ({shards.paths[0]} and its set) holds "
                f"{plural(shards.total, 'sample')}, of which as many give the floor of a score; give that many or fewer"
            )

    if config.every:
        metrics = [functools.partial(parse_metric, name) for name in config.metrics]
        all_of(require_test, *metrics, require_enough)


def require_writable(folder: Path) -> None:
    """Make the folder of checkpoints where it is missing. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # an existing folder need not be writable
            pass
    except OSError as error:
        raise UserError(unwritable_checkpoints(folder, error.strerror)) from error


def unwritable_checkpoints(folder: Path, reason: str | None) -> str:
    """The refusal where the folder of checkpoints cannot be written."""
    return f"{folder}: {reason}; give a run.dir that can be written"


def require_codec_of_latents(experiment: Experiment, shards: ShardSet) -> None:
    """Raise UserError where shards of latents were not encoded by the checkpoint that is the stage's codec."""
    hashes = {dependency.role: dependency.sha256 for dependency in experiment.stage.dependencies()}
    sha256 = hashes.get("codec")
    encoded_by = encoder(shards)
    if encoded_by == sha256:
        return
    holds, kind, codec = ("codes", "autoregressive", "vq") if _are_codes(shards) else ("latents", "ddpm", "vae")
    if sha256 is None or experiment.stage.kind != kind:
        raise UserError(
            f"{shards.paths[0]} and its set hold {holds}, which are for stage.kind={kind} with "
            f"stage.codec.kind={codec}; set both, and stage.codec.run to the run that encoded them, of the checkpoint "
            f"with sha256 {encoded_by}, or set data.train to the images"
        )
    raise UserError(
        f"{shards.paths[0]} and its set were encoded by the checkpoint with sha256 {encoded_by}, and stage.codec "
        f"is the one with {sha256}; encode the images again, or set stage.codec.sha256"
    )


def _are_codes(shards: ShardSet) -> bool:
    """Whether shards of latents hold codes, by their first sample."""
    first = next(number for number, shard in enumerate(shards.shards) if shard.samples)
    data = Reader(shards).read(first, shards.sample(first, 0), LATENTS)
    return from_bytes(data, shards.paths[first]).dtype == np.int32


def enlarged_images(experiment: Experiment, shards: ShardSet) -> str | None:
    """A remark where training enlarges images, by the headers of some that are spread over the shards.

    None for latents, and for remote shards, of which none is fetched for it.
    """
    resolution, looked_at, smaller = experiment.data.resolution, 0, 0
    if are_latents(shards) or any(shard.remote is not None for shard in shards.shards):
        return None
    reader, ends = Reader(shards, open_files=1), np.cumsum(shards.counts)
    for i in np.linspace(0, shards.total - 1, min(_SAMPLED, shards.total), dtype=np.int64).tolist():
        shard = int(np.searchsorted(ends, i, side="right"))
        sample = shards.sample(shard, i - int(ends[shard] - shards.counts[shard]))
        with contextlib.suppress(Exception):  # a damaged image is refused where it is trained on
            height, width = image_resolution(reader.image(shard, sample))
            looked_at += 1
            smaller += height < resolution.height or width < resolution.width
    if not smaller:
        return None
    size = f"{resolution.height}" if resolution.is_square else f"[{resolution.height},{resolution.width}]"
    are = plural(smaller, f"of {looked_at} sampled images is", f"of {looked_at} sampled images are")
    return (
        f"{are} smaller than data.resolution={size}: training enlarges them, and samples will be as blurred; lower "
        f"data.resolution, or leave small images out"
    )


def cache_warning(experiment: Experiment, shards: ShardSet, size: JobSize) -> str | None:
    """A warning where a machine's cache is too small for the remote shards that its ranks read at a time, or None."""
    data = experiment.data
    order = mixture.build_order(shards, experiment.seed, data)
    return mixture.cache_warning(shards, order, data.cache_bytes, size.local / size.world)
