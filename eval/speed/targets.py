"""The time of a training step for each target of a diffusion's network, beside that of eps.

    OMP_NUM_THREADS=1 python -m eval.speed.targets
    python -m eval.speed.targets --config configs/cifar10/ddpm.yaml data.batch_size=64

The targets take turns, one step each, in an order that moves on by one each round. A ratio is of two steps of one
round, so that it holds on a machine that does other things, too. The CPU time is that of this process alone.
"""

from __future__ import annotations

import argparse
import statistics

from eval.speed.benchmark import (
    NoiseTraining,
    StepTime,
    add_arguments,
    load_experiment,
    progress,
    setting_in_words,
    start_runtime,
    step_time,
    table,
)
from eval.speed.launch import machine

TARGETS = {
    "eps": (),
    "x0": ("stage.prediction=x0",),
    "v": ("stage.prediction=v",),
    "edm": ("stage.prediction=edm", "stage.schedule={kind: edm}"),
    "flow": ("stage.prediction=flow", "stage.schedule={kind: flow}"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each target (default %(default)s)")
    args = parser.parse_args(argv)
    busy = machine()
    with start_runtime(load_experiment(args)) as runtime:
        trainings = {name: NoiseTraining(load_experiment(args, *words), runtime) for name, words in TARGETS.items()}
        times: dict[str, list[StepTime]] = {name: [] for name in trainings}
        for training in trainings.values():
            training.step()
        names = list(trainings)
        for i in progress(range(args.rounds), "rounds", runtime):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(step_time(trainings[name].timed_step))
        if runtime.main:
            print(table([row(name, steps, times["eps"]) for name, steps in times.items()]))
            print(f"\n{setting_in_words(runtime)}; medians of {args.rounds} steps; {busy}")


def row(name: str, steps: list[StepTime], reference: list[StepTime]) -> dict[str, str]:
    """The median time of a target's step, and the median of its ratios to the steps of eps in the same rounds."""
    wall = statistics.median(step.wall / eps.wall for step, eps in zip(steps, reference, strict=True))
    cpu = statistics.median(step.cpu / eps.cpu for step, eps in zip(steps, reference, strict=True))
    return {
        "target": name,
        "step": f"{1e3 * statistics.median(step.wall for step in steps):.1f} ms",
        "of eps's": f"{wall:.3f}",
        "CPU time of eps's": f"{cpu:.3f}",
    }


if __name__ == "__main__":
    main()
