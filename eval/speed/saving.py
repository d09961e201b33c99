"""The cost of a save for training: steps with and without a save in flight, the stall, and accelerate's save_state.

    OMP_NUM_THREADS=2 python -m eval.speed.saving
    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml -m eval.speed.saving

Steps of a config's network on images of noise, without a loader. The kinds of saves take turns, with steps in between.
`AsyncCheckpointer.save` writes, syncs to the disk, hashes, commits and prunes. save_state writes to the page cache
only, so it is timed as it is and again with an fsync of its files.

A step counts as during a save if a save is in flight, on any process, when it begins and when it ends. The cost of a
save is its stall and the extra time of the steps beside it. The CPU seconds of a save are those of a synchronous one.
On GPUs a time is taken after the device has finished.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus
from eval.speed.benchmark import (
    NoiseTraining,
    add_arguments,
    load_experiment,
    progress,
    setting_in_words,
    start_runtime,
    synchronized_time,
    table,
)
from eval.speed.launch import machine


@dataclass
class Times:
    """Lists of seconds, by event."""

    quiet: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    extra: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    flights: list[float] = field(default_factory=list)
    synchronous: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    save_state: list[float] = field(default_factory=list)
    save_state_synced: list[float] = field(default_factory=list)


class SaveBenchmark:
    """Three ways to save, and steps between them."""

    def __init__(self, training: NoiseTraining, folder: Path):
        self.training, self.runtime, self.folder = training, training.runtime, folder
        comm = self.runtime.comm.new_group()
        self.background = AsyncCheckpointer(folder / "async", CheckpointConfig(), comm)
        self.synchronous_checkpointer = AsyncCheckpointer(
            folder / "sync", CheckpointConfig.model_validate({"async": False}), comm
        )
        self.stop_consensus = StopConsensus(self.runtime.comm)
        self.times = Times()
        if training.trainer.strategy.mesh is None:
            accelerator = self.runtime.accelerator  # the networks are prepared already
            for optimizer in training.trainer.optimizers.values():
                accelerator.prepare_optimizer(optimizer.adamw, device_placement=False)
            for average in training.trainer.averages.values():
                accelerator.register_for_checkpointing(average.net)

    def step(self) -> float:
        """The seconds of one step with its stop consensus, as in `diffpipe train`."""
        self.runtime.comm.barrier()
        since = synchronized_time(self.runtime)
        self.training.step()
        self.stop_consensus.poll(failed=self.background.failed)
        return synchronized_time(self.runtime) - since

    def in_flight(self) -> bool:
        """Whether a save is in flight on any rank: its thread is alive."""
        return any(self.runtime.comm.gather(any(thread.name == "checkpointer" for thread in threading.enumerate())))

    def save(self, checkpointer: AsyncCheckpointer) -> float:
        """The seconds for which training waits."""
        self.runtime.comm.barrier()
        since = synchronized_time(self.runtime)
        checkpointer.save(self.training.trainer.state(), self.training.state())
        return time.perf_counter() - since

    def quiet(self, steps: int) -> None:
        while self.in_flight():  # old checkpoints are removed after the save
            time.sleep(0.01)
        for _ in range(steps):
            self.times.quiet.append(self.step())

    def asynchronous(self) -> None:
        since = time.perf_counter()
        self.times.stalls.append(self.save(self.background))
        steps = []
        while self.in_flight():
            steps.append(self.step())
        self.times.flights.append(time.perf_counter() - since)
        self.background.wait()
        self.times.during += steps[:-1]  # the save ended within the last one
        alone = statistics.median(self.times.quiet)
        self.times.extra.append(self.times.stalls[-1] + sum(steps) - len(steps) * alone)

    def synchronous(self) -> None:
        before = time.process_time()
        self.times.synchronous.append(self.save(self.synchronous_checkpointer))
        self.times.processor.append(time.process_time() - before)

    def accelerate(self) -> None:
        if self.training.trainer.strategy.mesh is not None:
            return  # save_state cannot save what accelerate has not sharded
        self.runtime.comm.barrier()
        since = synchronized_time(self.runtime)
        out = self.folder / "save_state"
        self.runtime.accelerator.save_state(str(out))
        self.runtime.comm.barrier()
        self.times.save_state.append(time.perf_counter() - since)
        if self.runtime.main:
            sync(out)
        self.runtime.comm.barrier()
        self.times.save_state_synced.append(time.perf_counter() - since)
        if self.runtime.main:
            shutil.rmtree(out)

    def round(self, steps: int) -> None:
        for save in (self.asynchronous, self.synchronous, self.accelerate):
            self.quiet(steps)
            save()


def sync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def row(name: str, benchmark: SaveBenchmark) -> dict[str, str]:
    """One row: the medians over the steps and saves of all ranks. A collective."""
    parts = benchmark.runtime.comm.gather(benchmark.times)
    medians = {
        name: statistics.median(values)
        for name in vars(benchmark.times)
        if (values := [value for part in parts for value in getattr(part, name)])
    }
    n = {name: len(getattr(benchmark.times, name)) for name in vars(benchmark.times)}
    size = benchmark.runtime.comm.gather(sum(path.stat().st_size for path in newest(benchmark.folder).iterdir()))[0]
    quiet, during = medians["quiet"], medians.get("during")
    return {
        "network": f"{name}, {size / 1e6:.0f} MB, {setting_in_words(benchmark.runtime)}",
        "step alone": f"{quiet:.3f} s ({n['quiet']})",
        "during a save": "no step fits" if during is None else f"{during:.3f} s ({n['during']})",
        "ratio": "" if during is None else f"{during / quiet:.2f}",
        "a save lasts": f"{medians['flights']:.2f} s, {medians['flights'] / quiet:.1f} steps",
        "stall": f"{medians['stalls']:.3f} s",
        "synchronous": f"{medians['synchronous']:.2f} s",
        "stall/synchronous": f"{medians['stalls'] / medians['synchronous']:.1%}",
        "CPU per save": f"{medians['processor']:.2f} s",
        "cost per save": f"{medians['extra']:.2f} s",
        "save_state": "" if "save_state" not in medians else f"{medians['save_state']:.2f} s",
        "save_state, fsync": "" if "save_state" not in medians else f"{medians['save_state_synced']:.2f} s",
    }


def newest(folder: Path) -> Path:
    return max((folder / "async").glob("step-*"))


def shared_folder(parent: Path | None, runtime: Runtime) -> Path:
    """A new temporary folder, the same on all ranks."""
    folder = tempfile.mkdtemp(dir=parent, prefix="saving-") if runtime.main else ""
    return Path(runtime.comm.gather(folder)[0])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps before each save (default %(default)s)")
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: that of temporary files)")
    args = parser.parse_args(argv)
    busy = machine()
    config = load_experiment(args)
    with start_runtime(config) as runtime:
        benchmark = SaveBenchmark(NoiseTraining(config, runtime), shared_folder(args.dir, runtime))
        benchmark.round(1)  # warms up: buffers and moments are allocated
        first = benchmark.times.stalls[0]
        benchmark.times = Times()
        for _ in progress(range(args.rounds), "rounds", runtime):
            benchmark.round(args.steps)
        result = row(Path(args.config).parent.name + "/" + Path(args.config).stem, benchmark)
        if runtime.main:
            print(table([result]))
            print(f"\n{busy}; the first save, which allocates its buffers, stalls for {first:.3f} s")
            shutil.rmtree(benchmark.folder)


if __name__ == "__main__":
    main()
