"""`diffpipe verify-resume CONFIG [key=value …]`: is a training that was killed and resumed the one that was not?

Four trainings of the same steps: uninterrupted at the first number of processes and at another; killed at random
moments and resumed with another number of processes each time; killed and resumed with one number. What they saw and
what they hold at the end is compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffpipe.verify.resume import ended_by_signals, make_folders, train
from diffpipe.verify.resume_plan import Plan
from diffpipe.verify.verdict import Trained, judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the experiment; its data and its model are what is tried")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file: train.parallel=fsdp")
    parser.add_argument("--steps", type=int, default=24, help="how many to train, in each of four runs (default 24)")
    parser.add_argument("--worlds", help="numbers of processes, in turn (default 1,2,4 as far as there are GPUs)")
    parser.add_argument(
        "--kills", type=int, help="of the run that changes its world size (default: as many as --worlds)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed (default 0)")
    parser.add_argument("--out", type=Path, help="an empty folder for verdict.txt and verdict.json, and for the runs")
    parser.add_argument("--keep", action="store_true", help="keep the runs, which else are kept where they differ")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 1 where the verdict is that they differ."""
    plan = Plan.make(args)
    home, runs = make_folders(args.out)
    kept = args.keep
    try:
        with ended_by_signals():
            made: list[Trained] = []
            for training in plan.trainings():
                made.append(train(plan, training, runs, made[-1].pace if made else 0.0))
            verdict = judge(plan, made)
        kept = kept or not verdict.exact
        text = verdict.text(runs if kept else None)
        if args.out is not None:
            (home / "verdict.txt").write_text(text + "\n", encoding="utf-8")
            (home / "verdict.json").write_text(json.dumps(verdict.tree(), indent=1) + "\n", encoding="utf-8")
    finally:
        if not kept:
            shutil.rmtree(runs if args.out is not None else home, ignore_errors=True)
    print(text)
    return 0 if verdict.exact else 1
