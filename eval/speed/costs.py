"""The time of a step under fsdp and ddp, and of the stop consensus: the ranks agree after each step whether to stop.

    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml -m eval.speed.costs
    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml --num_processes 4 -m eval.speed.costs

The strategies, and steps with and without the consensus, take turns. The consensus's own time is that of
`StopConsensus.poll`, where the host reads the flags of the last step and sends those of this one; the reduction runs
beside the next step. On GPUs a time is taken after the device has finished.
"""

from __future__ import annotations

import argparse
import statistics
import time

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


def step_with_poll(training: NoiseTraining, stop_consensus: StopConsensus) -> tuple[float, float]:
    """The seconds of a step with the stop consensus, and of the consensus alone."""
    runtime = training.runtime
    runtime.comm.barrier()
    since = synchronized_time(runtime)
    training.step()
    before = time.perf_counter()
    stop_consensus.poll()
    poll = time.perf_counter() - before
    return synchronized_time(runtime) - since, poll


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps per round (default %(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=["ddp", "fsdp", "hsdp"], default=["ddp", "fsdp"])
    args = parser.parse_args(argv)
    busy = machine()
    with start_runtime(load_experiment(args)) as runtime:
        trainings = {
            name: NoiseTraining(load_experiment(args, f"train.parallel={name}"), runtime) for name in args.strategies
        }
        stop_consensus = StopConsensus(runtime.comm)
        for training in trainings.values():
            training.step()
            step_with_poll(training, stop_consensus)
        steps: dict[str, list[float]] = {name: [] for name in trainings}
        with_poll: list[float] = []
        polls: list[float] = []
        first = args.strategies[0]
        for _ in progress(range(args.rounds), "rounds", runtime):
            for name, training in trainings.items():
                steps[name] += [training.timed_step() for _ in range(args.steps)]
            for _ in range(args.steps):
                step, poll = step_with_poll(trainings[first], stop_consensus)
                with_poll.append(step)
                polls.append(poll)
        reference = median_of_all_ranks(runtime.comm.gather(steps[first]))
        rows = [
            {
                "step": f"{name}, {setting_in_words(runtime)}",
                "median": f"{1e3 * median_of_all_ranks(runtime.comm.gather(times)):.1f} ms",
                f"of {first}'s": f"{median_of_all_ranks(runtime.comm.gather(times)) / reference:.3f}",
            }
            for name, times in steps.items()
        ]
        step, poll = (
            median_of_all_ranks(runtime.comm.gather(with_poll)),
            median_of_all_ranks(runtime.comm.gather(polls)),
        )
        share = f"{step / reference:.3f}"
        rows.append(
            {"step": f"{first} with the stop consensus", "median": f"{1e3 * step:.1f} ms", f"of {first}'s": share}
        )
        share = f"{poll / reference:.5f}"
        rows.append({"step": "the stop consensus alone", "median": f"{1e3 * poll:.3f} ms", f"of {first}'s": share})
        if runtime.main:
            print(table(rows))
            print(f"\n{busy}; medians of {len(with_poll)} steps of each kind on each process")


def median_of_all_ranks(parts: list[list[float]]) -> float:
    return statistics.median(time for part in parts for time in part)


if __name__ == "__main__":
    main()
