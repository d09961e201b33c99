"""What is measured: a config's real network and trainer, on images of noise, so that no data has to be at hand."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime

CLASSES = 10


class Subject:
    """A trainer, and the share of this process of one global batch (`data.batch_size`) that it trains on."""

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
        images = (data.batch_size, shape.channels, shape.resolution, shape.resolution)
        noise = torch.randint(0, 256, images, dtype=torch.uint8, generator=generator)
        mine = torch.arange(data.batch_size)[runtime.rank :: runtime.world]
        labels = mine % CLASSES if data.labels else None
        self.batch = Batch(noise[mine], labels, mine, [str(i) for i in mine.tolist()])

    def step(self) -> None:
        self.trainer.train_step([self.batch])

    def timed_step(self) -> float:
        """The seconds of one step, to its end on the device. The ranks begin it together."""
        self.runtime.comm.barrier()
        since = now(self.runtime)
        self.step()
        return now(self.runtime) - since

    def state(self) -> RunState:
        """What a checkpoint of it says beside the tensors."""
        trainer, shape = self.trainer, Shape(**self.shape._asdict())
        experiment = self.experiment.model_dump(mode="json")
        return RunState(
            step=trainer.step, position=trainer.position, fingerprint="noise", shape=shape, experiment=experiment
        )

    def forget(self) -> None:
        """Give the memory back before the next one is built: a trainer is full of cycles."""
        del self.trainer
        gc.collect()


def now(runtime: Runtime) -> float:
    """The clock, in seconds, when the device has done all that it was given."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter()


def add_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    parser.add_argument("--config", default=config, help="an experiment's YAML file (default %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="laid over the file; data.batch_size is the global batch"
    )


def experiment(args: argparse.Namespace, *more: str) -> Experiment:
    return load_config(Experiment, args.config, [*args.overrides, *more])


def start(of: Experiment) -> Runtime:
    return Runtime.start(of.train.precision, of.train.device, timeout=of.train.timeout)


def progress(values: Iterable[Any], what: str, runtime: Runtime) -> tqdm:
    return tqdm(values, desc=what, disable=not runtime.main)


def setting(runtime: Runtime) -> str:
    """On what it was measured, for the table: `2 processes of 1 thread on cpu, bf16`."""
    processes, threads = runtime.world, torch.get_num_threads()
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu"
    counted = f"{processes} process{'es' if processes > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    return f"{counted} on {device}, {str(runtime.dtype).removeprefix('torch.')}"


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows by column name as Markdown: what stands in the README."""
    head = list(rows[0])
    lines = [head, ["---", *("---:" for _ in head[1:])], *([row[name] for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
