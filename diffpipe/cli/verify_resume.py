"""`diffpipe verify-resume CONFIG [key=value …]`: checks that a killed and resumed run equals an uninterrupted one.

It trains four runs of the same steps: uninterrupted ones at the first and at another number of processes; one that is
killed at random times and resumed with another number of processes each time; one that is killed and resumed with the
same number. It compares the samples that they saw and the checkpoints that they ended with.
"""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options

_EXAMPLE = "diffpipe verify-resume configs/own_images/ddpm.yaml data.train=shards/photos --steps 12 --worlds 1,2,4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(_EXAMPLE)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment whose data and model are used")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=options.OVERRIDES)
    parser.add_argument("--steps", type=int, default=24, help="steps of each of the four runs (default %(default)s)")
    parser.add_argument(
        "--worlds", metavar="N,N", help="numbers of processes, in turn (default 1,2,4 as far as there are GPUs)"
    )
    parser.add_argument(
        "--kills", type=int, help="kills of the run that changes its world size (default: as many as --worlds)"
    )
    options.add_seed(parser, "seed of the times of the kills")
    parser.add_argument(
        "--out", type=types.local_path, metavar="DIR", help="an empty folder for verdict.txt, verdict.json and the runs"
    )
    parser.add_argument("--keep", action="store_true", help="keep the runs even where they do not differ")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 1 where the runs differ."""
    from diffpipe.verify.resume import verify
    from diffpipe.verify.resume_plan import ResumePlan

    plan = ResumePlan.make(args.config, args.overrides, **options.values(args, "steps", "worlds", "kills", "seed"))
    verdict = verify(plan, args.out, keep=args.keep)
    files = [] if args.out is None else [args.out / name for name in ("verdict.txt", "verdict.json")]
    options.print_result(verdict.text(), *files, **verdict.tree())
    return 0 if verdict.exact else 1
