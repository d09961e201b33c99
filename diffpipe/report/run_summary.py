"""The summary of one trained run: its scores, likelihood, reconstruction error, speed and size."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.evaluation.compression import coder_of, compress_images
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import labelled_images, require_likelihood, score_images, scoring_stage
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run, generated_images
from diffpipe.interfaces import Borrows, Generates, Reconstructs
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.report.metrics_log import read_metrics
from diffpipe.rng import KeyedRNG
from diffpipe.run_folder import METRICS
from diffpipe.train.runtime import Runtime

TIMED_SECONDS, TIMED_CHUNKS = 2.0, 20


@dataclass(frozen=True)
class RunSummary:
    """One row of a comparison, as JSON values. A field is None where the run has no such value.

    missing: the reason for each None, by field. bits_per_dim: value, standard_error, n, unit, and kind as in
    `interfaces.Score`. compressed: value (bits/dim on disk of the same images), bytes, initial_bytes and n; None also
    where no compression was asked for. reconstruction: value, unit, n. training: images_per_second (the median over the
    log lines but the first) and the seconds that all images take at that rate. sampling: images_per_second of all
    processes together, evaluations (of the run's own networks, per image) and timed_chunks. parameters: of the networks
    that generate (with a codec's) and of all. reused: the scores were read from an existing score file.
    """

    name: str
    run: str
    stage: str
    conditional: bool
    checkpoint: str
    step: int
    images_seen: int
    weights: str
    sampler: dict[str, Any]
    parameters: dict[str, int | None]
    scores: dict[str, float] | None = None
    score_file: str | None = None
    reused: bool = False
    bits_per_dim: dict[str, Any] | None = None
    compressed: dict[str, Any] | None = None
    reconstruction: dict[str, Any] | None = None
    training: dict[str, float] | None = None
    sampling: dict[str, Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)


class TimedSamples(NamedTuple):
    """The first chunk of generated images, and the sampling speed: images_per_second, evaluations, timed_chunks."""

    images: UInt8[Tensor, "b c h w"]
    speed: dict[str, Any]


def _all_networks(run: Run) -> dict[str, nn.Module]:
    """The run's networks by name, and those of other runs that it generates with."""
    return run.nets | (run.stage.borrowed_networks() if isinstance(run.stage, Borrows) else {})


def count_parameters(run: Run) -> dict[str, int | None]:
    """The number of parameters: of the networks that generate (None where the stage does not), and of all."""
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in _all_networks(run).items()}
    stage = run.stage
    generating = sum(sizes[name] for name in stage.generating) if isinstance(stage, Generates) else None
    return {"generating": generating, "all": sum(sizes.values())}


def time_sampling(run: Run, runtime: Runtime, seed: int) -> TimedSamples:
    """Generate a first chunk to warm up, then time more on every process. A collective."""
    source = generated_images(run, runtime, n=CHUNK, seed=seed, label=None)

    def measure() -> tuple[Tensor, list[float]]:
        first = source.images(range(CHUNK))
        seconds: list[float] = []
        while len(seconds) < TIMED_CHUNKS and sum(seconds) < TIMED_SECONDS:
            start = time.perf_counter()
            source.images(range(CHUNK * (len(seconds) + 1), CHUNK * (len(seconds) + 2)))
            seconds.append(time.perf_counter() - start)
        return first, seconds

    runtime.comm.barrier()
    first, seconds = runtime.comm.raise_on_all_ranks(measure)
    rates = runtime.comm.gather(CHUNK / statistics.median(seconds))
    evaluations = source.stage.evaluations()
    speed = {"images_per_second": sum(rates), "evaluations": evaluations, "timed_chunks": len(seconds)}
    return TimedSamples(first, speed)


def training_speed(run: Run) -> dict[str, float] | None:
    """The median images per second over the log lines but the first, and the seconds that all images take at it.

    None where metrics.jsonl has fewer than two lines up to the checkpoint.
    """
    try:
        column = read_metrics(run.home / METRICS).columns["images_per_second"]
    except (OSError, KeyError):  # a run without the log is a run all the same
        return None
    rates = column.values[column.steps <= run.checkpoint.step][1:]
    rates = rates[np.isfinite(rates) & (rates > 0)]  # the file may be somebody else's
    if not len(rates):
        return None
    rate = statistics.median(rates.tolist())
    return {"images_per_second": rate, "seconds": run.checkpoint.state.position / rate}


def mean_likelihood(run: Run, shards: str, n: int, seed: int, runtime: Runtime) -> dict[str, Any]:
    """The mean likelihood of n images or a bound on it, in float32. A collective.

    Raises UserError where the stage has none.
    """
    scoring_stage(run, likelihood=True)
    images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(shards, run, n))
    scores = score_images(run, images, seed, _in_float32(runtime), title="bits/dim")
    require_likelihood(scores, run)
    value, error = scores.mean("score"), scores.standard_error("score")
    return {"value": value, "standard_error": error, "n": scores.n, "unit": scores.unit, "kind": scores.kind}


def compressed_size(run: Run, shards: str, n: int, seed: int, runtime: Runtime) -> dict[str, Any]:
    """The size of the images of `mean_likelihood`, compressed losslessly. A collective.

    Raises UserError where the stage has no likelihood that codes images.
    """
    coder_of(run)
    images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(shards, run, n))
    compression = compress_images(run, images, _in_float32(runtime), seed=seed)
    size = {"bytes": compression.bits // 8, "initial_bytes": compression.initial_bits // 8}
    return {"value": compression.bits_per_dim, **size, "n": images.n}


def reconstruct(
    run: Run, images: UInt8[Tensor, "b c h w"], positions: range, seed: int, runtime: Runtime
) -> UInt8[Tensor, "b c h w"]:
    """The images encoded and decoded, on the CPU, computed in float32.

    positions: the index of each image, from which its noise is derived. Raises UserError where the stage encodes
    nothing.
    """
    if not isinstance(run.stage, Reconstructs):
        raise UserError(f"stage.kind {run.experiment.stage.kind} reconstructs no images")
    float32 = _in_float32(runtime)
    rng = KeyedRNG(seed, torch.tensor(positions, device=float32.device))
    with torch.no_grad(), float32.autocast():
        return run.stage.reconstruct(run.nets, images.to(float32.device), rng).cpu()


def reconstruction_error(run: Run, images: ShardImages, seed: int, runtime: Runtime) -> dict[str, Any]:
    """The mean squared error of the reconstructions. A collective. Raises UserError where the stage encodes nothing."""

    def errors(chunk: range) -> Tensor:
        real = images.images(chunk)
        difference = reconstruct(run, real, chunk, seed, runtime).double() - real.double()
        return (difference / 127.5).square().mean((1, 2, 3))

    value = torch.cat(map_over_ranks(images.n, errors, _in_float32(runtime))).mean().item()
    return {"value": value, "unit": "mean squared error of pixels in [-1, 1]", "n": images.n}


def _in_float32(runtime: Runtime) -> Runtime:
    """The same processes in float32: the rounding of half precision shows in the third decimal of a likelihood."""
    return dataclasses.replace(runtime, dtype=torch.float32)
