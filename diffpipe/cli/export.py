"""`diffpipe export RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file

from diffpipe.config import dump_yaml
from diffpipe.errors import UserError
from diffpipe.experiment.run import open_run
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for one safetensors file a network and the config"
    )
    parser.add_argument("--to", choices=["safetensors"], default="safetensors")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")


def run(args: argparse.Namespace) -> None:
    with Runtime.start("fp32", "cpu") as runtime:
        opened = open_run(args.run, [], runtime, raw=args.raw)
        if runtime.main:
            try:
                args.out.mkdir(parents=True, exist_ok=True)
                for name, net in opened.nets.items():
                    tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
                    save_file(tensors, args.out / f"{name}.safetensors", metadata={"weights": opened.weights})
                (args.out / "config.yaml").write_text(dump_yaml(opened.experiment), encoding="utf-8")
            except OSError as error:
                raise UserError(f"{args.out}: {error.strerror}; give a folder that can be written") from error
        print_on_rank_zero(runtime, f"{opened.weights} weights of step {opened.checkpoint.step}: {args.out}")
