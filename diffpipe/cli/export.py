"""`diffpipe export RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe export runs/photos weights/photos",
        "diffpipe export runs/photos photos.safetensors",
        "diffpipe export runs/photos pipelines/photos --to diffusers",
        notes="safetensors is a folder of one file per network and config.yaml, or one file with all of them where OUT "
        "ends in .safetensors; `diffpipe import` reads that file. diffusers is a folder for DDPMPipeline, "
        "DDIMPipeline or DiTPipeline.from_pretrained; of a run with lora the adapter alone, without --merge.",
    )
    options.add_run(parser)
    parser.add_argument(
        "out", type=types.local_path, metavar="OUT", help="a folder, or a file that ends in .safetensors"
    )
    parser.add_argument(
        "--to", choices=["safetensors", "diffusers"], default="safetensors", help="format (default %(default)s)"
    )
    parser.add_argument("--merge", action="store_true", help="diffusers: a run with lora as a whole folder")
    parser.add_argument("--codec", metavar="RUN", help="current path of the VAE of a latent diffusion run")
    options.add_weights(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load

    codec = [f"stage.codec.run={args.codec}"] if args.codec else []
    with load(args.run, raw=args.raw, ema=args.ema, overrides=codec, precision="fp32", device="cpu") as run:
        notes = run.export(args.out, args.to, merge=args.merge)
    if is_main_process():
        options.print_notes(notes)
        text = f"{run.weights} weights of step {run.step}: {args.out}"
        options.print_result(text, args.out, **options.about_run(args.run, run))
