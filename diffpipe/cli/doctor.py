"""`diffpipe doctor CONFIG [key=value …]`: what would break a training or make it slow, before it starts."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.cli.argument_types import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe doctor configs/fashion_mnist/ddpm.yaml",
        "diffpipe doctor CONFIG --world 1024 --machines 128 train.parallel=fsdp",
        notes="It writes nothing into the run directory. The exit status is 1 where there is an error, else 0.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=options.OVERRIDES)
    parser.add_argument(
        "--world",
        type=positive,
        metavar="N",
        help="rehearse a job of so many processes, by arithmetic and without a step",
    )
    parser.add_argument(
        "--machines",
        type=positive,
        metavar="N",
        help="machines of the rehearsed job (default: as many as its GPUs need)",
    )


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 1 where there is an error."""
    from diffpipe.experiment.doctor.checkup import diagnose
    from diffpipe.process import is_main_process

    diagnosis = diagnose(args.config, args.overrides, **options.values(args, "world", "machines"))
    if is_main_process():
        options.print_result(diagnosis.text(), **diagnosis.as_dict())
    return 1 if diagnosis.errors else 0
