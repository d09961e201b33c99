"""The training that the benchmarks measure: a config's network and trainer on images of noise, without a data set."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime

CLASSES = 10


class NoiseTraining:
    """A trainer that trains on the same batch in every step: this process's share of `data.batch_size` images."""

    def __init__(self, experiment: Experiment, runtime: Runtime):
        data, build = experiment.data, experiment.stage.build
        shape = ImageShape(data.channels, data.resolution, CLASSES if data.labels else 0)
        self.experiment, self.shape, self.runtime = experiment, shape, runtime
        self.trainer = Trainer(
            build(shape),
            runtime,
            experiment.train,
            experiment.optimizer,
            experiment.ema,
            seed=experiment.seed,
            batch_size=data.batch_size,
        )
        generator = torch.Generator().manual_seed(experiment.seed)
        images = (data.batch_size, *shape.chw)
        noise = torch.randint(0, 256, images, dtype=torch.uint8, generator=generator)
        positions = torch.arange(data.batch_size)[runtime.rank :: runtime.world]
        labels = positions % CLASSES if data.labels else None
        self.batch = Batch(noise[positions], labels, positions, [str(i) for i in positions.tolist()])

    def step(self) -> None:
        self.trainer.train_step([self.batch])

    def timed_step(self) -> float:
        """The seconds of one step, to its end on the device. All ranks begin it together."""
        self.runtime.comm.barrier()
        since = synchronized_time(self.runtime)
        self.step()
        return synchronized_time(self.runtime) - since

    def state(self) -> RunState:
        """The state of a checkpoint beside the tensors."""
        trainer, shape = self.trainer, Shape(**self.shape._asdict())
        experiment = self.experiment.model_dump(mode="json")
        return RunState(
            step=trainer.step, position=trainer.position, fingerprint="noise", shape=shape, experiment=experiment
        )

    def free(self) -> None:
        """Free the memory before the next training is built: a trainer has reference cycles."""
        del self.trainer
        gc.collect()


class StepTime(NamedTuple):
    """Seconds of a step: by the clock, to its end on the device, and of this process's CPU time."""

    wall: float
    cpu: float


def step_time(timed_step: Callable[[], float]) -> StepTime:
    """The times of a step. timed_step: takes it, and returns its seconds by the clock."""
    cpu = time.process_time()
    wall = timed_step()
    return StepTime(wall, time.process_time() - cpu)


def synchronized_time(runtime: Runtime) -> float:
    """The clock in seconds, after the device has finished all work."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter()


def add_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    parser.add_argument("--config", default=config, help="an experiment's YAML file (default %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override the file; data.batch_size is the global batch"
    )


def load_experiment(args: argparse.Namespace, *more: str) -> Experiment:
    return load_config(Experiment, args.config, [*args.overrides, *more])


def start_runtime(config: Experiment) -> Runtime:
    return Runtime.start(config.train.precision, config.train.device, timeout=config.train.timeout)


def progress(values: Iterable[Any], title: str, runtime: Runtime) -> tqdm:
    return tqdm(values, desc=title, disable=not runtime.main)


def setting_in_words(runtime: Runtime) -> str:
    """Processes, device and precision, for the table: `2 processes of 1 thread on cpu, bf16`."""
    processes, threads = runtime.world, torch.get_num_threads()
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu"
    counts = f"{processes} process{'es' if processes > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    return f"{counts} on {device}, {str(runtime.dtype).removeprefix('torch.')}"


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows by column name as a Markdown table, as in the README."""
    head = list(rows[0])
    lines = [head, ["---", *("---:" for _ in head[1:])], *([row[name] for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
