"""What a step costs under fsdp beside ddp, and what its boundary costs, where the ranks agree on whether to go on.

    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml -m eval.speed.costs
    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml --num_processes 4 -m eval.speed.costs

The layouts and steps with and without a boundary take turns. The boundary's own time is that in `Boundary.cross`, where
the host reads the flags of the step before and sends off this step's; the reduction runs beside the next step. On GPUs
times are taken when the device is done.
"""

from __future__ import annotations

import argparse
import statistics
import time

from diffpipe.train.stop import StopConsensus
from eval.speed.jobs import machine
from eval.speed.subject import Subject, add_arguments, experiment, now, progress, setting, start, table


def crossed_step(subject: Subject, stop_consensus: StopConsensus) -> tuple[float, float]:
    """The seconds of a step with its boundary, and of the boundary alone."""
    runtime = subject.runtime
    runtime.comm.barrier()
    since = now(runtime)
    subject.step()
    reached = time.perf_counter()
    stop_consensus.poll()
    crossed = time.perf_counter() - reached
    return now(runtime) - since, crossed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (default %(default)s)")
    parser.add_argument("--layouts", nargs="+", choices=["ddp", "fsdp", "hsdp"], default=["ddp", "fsdp"])
    args = parser.parse_args(argv)
    busy = machine()
    with start(experiment(args)) as runtime:
        subjects = {name: Subject(experiment(args, f"train.parallel={name}"), runtime) for name in args.layouts}
        stop_consensus = StopConsensus(runtime.comm)
        for subject in subjects.values():
            subject.step()
            crossed_step(subject, stop_consensus)
        steps: dict[str, list[float]] = {name: [] for name in subjects}
        crossed: list[float] = []
        boundaries: list[float] = []
        first = args.layouts[0]
        for _ in progress(range(args.rounds), "rounds", runtime):
            for name, subject in subjects.items():
                steps[name] += [subject.timed_step() for _ in range(args.steps)]
            for _ in range(args.steps):
                step, cost = crossed_step(subjects[first], stop_consensus)
                crossed.append(step)
                boundaries.append(cost)
        usual = middle(runtime.comm.gather(steps[first]))
        rows = [
            {
                "step": f"{name}, {setting(runtime)}",
                "median": f"{1e3 * middle(runtime.comm.gather(times)):.1f} ms",
                f"of {first}'s": f"{middle(runtime.comm.gather(times)) / usual:.3f}",
            }
            for name, times in steps.items()
        ]
        with_it, alone = middle(runtime.comm.gather(crossed)), middle(runtime.comm.gather(boundaries))
        share = f"{with_it / usual:.3f}"
        rows.append({"step": f"{first} with its boundary", "median": f"{1e3 * with_it:.1f} ms", f"of {first}'s": share})
        share = f"{alone / usual:.5f}"
        rows.append({"step": "the boundary alone", "median": f"{1e3 * alone:.3f} ms", f"of {first}'s": share})
        if runtime.main:
            print(table(rows))
            print(f"\n{busy}; medians of {len(crossed)} steps of each kind on each process")


def middle(parts: list[list[float]]) -> float:
    return statistics.median(time for part in parts for time in part)


if __name__ == "__main__":
    main()
