"""What `verify-resume` trains: how often it is killed and when, and what it lays over the user's config for it."""

from __future__ import annotations

import argparse
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment

# At one world size all must be the same in every bit, whatever the precision and the optimizer. At others sums have
# another order, and what that makes of the weights is to be told from what a broken resume makes of them: float32 keeps
# it small. And Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms it.
CALM = 1e-3


class Moment(NamedTuple):
    """When to kill: so far into this step, counted from 0, as a share of a step's time."""

    step: int
    share: float


class Training(NamedTuple):
    """A run to be made: the number of processes of each attempt, and when each but the last is killed."""

    name: str
    worlds: tuple[int, ...]
    moments: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is trained, how often it is killed, and what is laid over the config for it."""

    config: str
    overrides: tuple[str, ...]
    laid_over: tuple[str, ...]
    steps: int
    worlds: tuple[int, ...]
    kills: int
    seed: int
    every: int
    batch_size: int
    precision: str
    threads: int | None

    @classmethod
    def make(cls, args: argparse.Namespace) -> Plan:
        """Raises UserError for what cannot work, before anything is trained."""
        if "RANK" in os.environ:
            raise UserError("verify-resume starts its processes itself; run it by itself, without a launcher")
        experiment = load_config(Experiment, args.config, args.overrides)
        cpu = experiment.train.device == "cpu" or not torch.cuda.is_available()
        worlds = _worlds(args.worlds, None if cpu else torch.cuda.device_count())
        kills = len(worlds) if args.kills is None else args.kills
        if args.steps < 4:
            raise UserError(f"--steps {args.steps} leaves no room to be killed and resumed in; give 4 or more")
        least = max(1, len(worlds) - 1)
        if kills < least:
            raise UserError(f"--kills {kills} is too few to come to {len(worlds)} world sizes; give {least} or more")
        needed = max(worlds) * experiment.train.accumulate
        if experiment.data.batch_size < needed:
            raise UserError(
                f"data.batch_size={experiment.data.batch_size} cannot be split over {max(worlds)} processes and "
                f"{experiment.train.accumulate} micro-batches; make it {needed} or more, or give smaller --worlds"
            )
        every = max(2, (args.steps - 1) // (2 * kills + 1))
        precision = "fp32" if experiment.train.precision == "auto" else experiment.train.precision
        laid_over = [f"train.steps={args.steps}", f"checkpoint.every={every}", "train.record_samples=true"]
        laid_over += ["sample.every=0", "eval.every=0", "eval.reconstruction=0", "validate.every=0"]
        if len(set(worlds)) > 1:
            laid_over += [f"train.precision={precision}", f"optimizer.eps={max(CALM, experiment.optimizer.eps)}"]
            # Dropout is by rank, so that other numbers of processes drop others.
            laid_over += [f"{key}=0" for key in _dropouts(experiment.stage.model_dump(), "stage")]
        plan = cls(
            args.config,
            tuple(args.overrides),
            tuple(laid_over),
            args.steps,
            worlds,
            kills,
            args.seed,
            every,
            experiment.data.batch_size,
            precision,
            1 if cpu else None,
        )
        plan.trainings()
        return plan

    @property
    def first(self) -> int:
        """The world size that the others are compared with."""
        return self.worlds[0]

    @property
    def most(self) -> int:
        return max(self.worlds)

    @property
    def other(self) -> int:
        """The world size whose uninterrupted run says what another order of sums makes of the same training."""
        return self.most if self.most != self.first else min(self.worlds)

    def trainings(self) -> list[Training]:
        """Raises UserError where the steps are too few for the kills."""
        straight = [Training(f"straight-{world}", (world,)) for world in dict.fromkeys((self.first, self.other))]
        if self.first == self.other:
            worlds = (self.first,) * (self.kills + 1)
            return [*straight, Training("control", worlds, self.moments("control", self.kills))]
        worlds = tuple(self.worlds[i % len(self.worlds)] for i in range(self.kills + 1))
        elastic = Training("elastic", worlds, self.moments("elastic", self.kills))
        return [*straight, elastic, Training("control", (self.most,) * 2, self.moments("control", 1))]

    def moments(self, name: str, kills: int) -> tuple[Moment, ...]:
        """Random ones, one in each of equal spans of the steps, and at a step after which something is to be lost."""
        draw = random.Random(f"{self.seed} {name}")
        # The last quarter is left out: steps can be so quick that a late kill would come when all is over.
        steps = [step for step in range(1, max(3, self.steps * 3 // 4)) if step % self.every]
        resumable = [step for step in steps if step > self.every]  # there is a checkpoint to come back to
        steps = resumable if len(resumable) >= kills else steps
        if len(steps) < kills:
            raise UserError(
                f"--steps {self.steps} are too few to be killed {kills} times in; give more, or fewer --kills"
            )
        edges = [i * len(steps) // kills for i in range(kills + 1)]
        spans = [steps[a:b] for a, b in itertools.pairwise(edges)]
        return tuple(Moment(draw.choice(span), draw.random()) for span in spans)

    def words(self, run_dir: Path) -> list[str]:
        """The training as `diffpipe` takes it."""
        return ["train", self.config, *self.overrides, *self.laid_over, f"run.dir={run_dir}"]


def _worlds(text: str | None, devices: int | None) -> tuple[int, ...]:
    """The numbers of processes. devices: GPUs, of which each process takes one; None on CPUs."""
    if text is None:
        return tuple(world for world in (1, 2, 4) if devices is None or world <= devices)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--worlds {text!r} is not a list of numbers of processes; write 1,2,4")
    worlds = tuple(int(word) for word in words)
    if devices is not None and max(worlds) > devices:
        raise UserError(
            f"--worlds {text} takes {max(worlds)} GPUs and there are {devices}; give smaller ones, or train.device=cpu"
        )
    return worlds


def _dropouts(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dropouts(value, f"{prefix}.{key}")
        elif key == "dropout" and value:
            yield f"{prefix}.{key}"
