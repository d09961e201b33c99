"""The plan of `verify-resume`: the runs to train, when each is killed, and the overrides that this needs."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.machine import TRAINING_BYTES, process_warnings
from diffpipe.plural import plural

# At one world size every bit must be the same, whatever the precision and the optimizer. At several, sums are taken in
# another order, and its effect on the weights must stay smaller than that of a broken resume. float32 keeps it small.
# A large eps keeps it small in Adam, whose first steps are as long for a gradient of rounding errors as for any other.
MIN_EPS = 1e-3


class KillPoint(NamedTuple):
    """When to kill: in this step, counted from 0, after this fraction of the time that a step takes."""

    step: int
    fraction: float


class PlannedRun(NamedTuple):
    """One run to train: the number of processes of each attempt, and a kill point for each attempt but the last."""

    name: str
    worlds: tuple[int, ...]
    kill_points: tuple[KillPoint, ...] = ()


@dataclass(frozen=True)
class ResumePlan:
    """The user's config with overrides, and how often and at which numbers of processes it is trained and killed.

    forced_overrides: `key=value` words that the check needs, applied after the user's. kills: of the run that changes
    its world size. threads: OMP threads per process, None on GPUs.
    """

    config: str
    overrides: tuple[str, ...]
    forced_overrides: tuple[str, ...]
    steps: int
    worlds: tuple[int, ...]
    kills: int
    seed: int
    checkpoint_every: int
    batch_size: int
    precision: str
    threads: int | None

    @classmethod
    def make(
        cls, config: str, overrides: Sequence[str], *, steps: int, worlds: str | None, kills: int | None, seed: int
    ) -> ResumePlan:
        """The plan for the options of `verify-resume`. Raises UserError, before any training, for what cannot work."""
        if "RANK" in os.environ:
            raise UserError("verify-resume starts its processes itself; run it without a launcher")
        experiment = load_config(Experiment, config, overrides)
        cpu = experiment.train.device == "cpu" or not torch.cuda.is_available()
        world_sizes = _parse_worlds(worlds, None if cpu else torch.cuda.device_count())
        kills = len(world_sizes) if kills is None else kills
        _require_enough(steps, world_sizes, kills, experiment)
        checkpoint_every = max(2, (steps - 1) // (2 * kills + 1))
        precision = "fp32" if experiment.train.precision == "auto" else experiment.train.precision
        forced = [
            f"train.steps={steps}",
            "train.minutes=null",
            f"checkpoint.every={checkpoint_every}",
            "train.record_samples=true",
        ]
        forced += ["sample.every=0", "eval.every=0", "eval.reconstruction=0", "validate.every=0"]
        if len(set(world_sizes)) > 1:
            forced += [f"train.precision={precision}", f"optimizer.eps={max(MIN_EPS, experiment.optimizer.eps)}"]
            # Dropout depends on the rank, so another number of processes drops other units.
            forced += [f"{key}=0" for key in _dropout_keys(experiment.stage.model_dump(), "stage")]
        plan = cls(
            config=config,
            overrides=tuple(overrides),
            forced_overrides=tuple(forced),
            steps=steps,
            worlds=world_sizes,
            kills=kills,
            seed=seed,
            checkpoint_every=checkpoint_every,
            batch_size=experiment.data.batch_size,
            precision=precision,
            threads=1 if cpu else None,
        )
        plan.runs()
        return plan

    @property
    def first_world(self) -> int:
        """The world size that the others are compared with."""
        return self.worlds[0]

    @property
    def largest_world(self) -> int:
        return max(self.worlds)

    @property
    def other_world(self) -> int:
        """The world size of the second uninterrupted run, which shows the effect of another order of sums."""
        return self.largest_world if self.largest_world != self.first_world else min(self.worlds)

    def runs(self) -> list[PlannedRun]:
        """The runs in order: uninterrupted ones, `elastic` with several world sizes, `control`, killed at one.

        Raises UserError where the steps are too few for the kills.
        """
        worlds = dict.fromkeys((self.first_world, self.other_world))
        uninterrupted = [PlannedRun(f"uninterrupted-{world}", (world,)) for world in worlds]
        if self.first_world == self.other_world:
            same_worlds = (self.first_world,) * (self.kills + 1)
            return [*uninterrupted, PlannedRun("control", same_worlds, self._kill_points("control", self.kills))]
        cycle = tuple(self.worlds[i % len(self.worlds)] for i in range(self.kills + 1))
        elastic = PlannedRun("elastic", cycle, self._kill_points("elastic", self.kills))
        control = PlannedRun("control", (self.largest_world,) * 2, self._kill_points("control", 1))
        return [*uninterrupted, elastic, control]

    def _kill_points(self, name: str, kills: int) -> tuple[KillPoint, ...]:
        """Random kill points: one in each of `kills` equal spans of the steps, never right after a checkpoint."""
        rng = random.Random(f"{self.seed} {name}")
        # Not in the last quarter: steps can be so quick that a late kill would come after the end.
        steps = [step for step in range(1, max(3, self.steps * 3 // 4)) if step % self.checkpoint_every]
        after_checkpoint = [step for step in steps if step > self.checkpoint_every]
        steps = after_checkpoint if len(after_checkpoint) >= kills else steps
        if len(steps) < kills:
            raise UserError(
                f"--steps {self.steps} are too few to be killed {plural(kills, 'time')} in; give more, or fewer --kills"
            )
        edges = [i * len(steps) // kills for i in range(kills + 1)]
        spans = [steps[a:b] for a, b in itertools.pairwise(edges)]
        return tuple(KillPoint(rng.choice(span), rng.random()) for span in spans)

    def train_command(self, run_dir: Path) -> list[str]:
        """The arguments of `diffpipe` that train, or resume, in this directory."""
        return ["train", self.config, *self.overrides, *self.forced_overrides, f"run.dir={run_dir}"]


def _require_enough(steps: int, worlds: Sequence[int], kills: int, experiment: Experiment) -> None:
    """Raise UserError for too few steps, kills or images in a batch."""
    if steps < 4:
        raise UserError(f"--steps {steps} leaves no room to be killed and resumed in; give 4 or more")
    min_kills = max(1, len(worlds) - 1)
    if kills < min_kills:
        raise UserError(
            f"--kills {kills} is too few to reach {plural(len(worlds), 'world size')}; give {min_kills} or more"
        )
    min_batch = max(worlds) * experiment.train.accumulate
    if experiment.data.batch_size < min_batch:
        raise UserError(
            f"data.batch_size={experiment.data.batch_size} cannot be split over "
            f"{plural(max(worlds), 'process', 'processes')} and "
            f"{plural(experiment.train.accumulate, 'micro-batch', 'micro-batches')}; make it {min_batch} or more, or "
            "give smaller --worlds"
        )


def _parse_worlds(text: str | None, gpus: int | None) -> tuple[int, ...]:
    """The numbers of processes in "1,2,4". gpus: how many there are, one per process; None on CPUs."""
    if text is None:
        return tuple(world for world in (1, 2, 4) if gpus is None or world <= gpus)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--worlds {text!r} is not a list of numbers of processes; write 1,2,4")
    worlds = tuple(int(word) for word in words)
    if gpus is not None and max(worlds) > gpus:
        raise UserError(
            f"--worlds {text} takes {plural(max(worlds), 'GPU')} and there are {gpus}; give smaller ones, or "
            "train.device=cpu"
        )
    process_warnings("--worlds", max(worlds), "training processes", size=TRAINING_BYTES)
    return worlds


def _dropout_keys(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    """The dotted keys of all non-zero dropout rates."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dropout_keys(value, f"{prefix}.{key}")
        elif key == "dropout" and value:
            yield f"{prefix}.{key}"
