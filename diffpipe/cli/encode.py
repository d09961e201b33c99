"""`diffpipe encode RUN SHARDS OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe encode runs/vae shards/photos shards/latents")
    options.add_run(parser, "a run of stage.kind=vae or vq, or one checkpoint in it")
    options.add_shards(parser, "images to encode; read at the run's resolution")
    parser.add_argument(
        "out", type=types.local_path, metavar="OUT", help="folder for the shards of latents and their index"
    )
    options.add_runtime(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.encode import encode_shards
    from diffpipe.experiment.run import open_codec
    from diffpipe.train.runtime import Runtime

    with Runtime.start(args.precision, args.device) as runtime:
        codec, checkpoint = open_codec(args.run, runtime)
        shards = encode_shards(codec, checkpoint.manifest_sha256, args.shards, args.out, runtime)
    if is_main_process():
        encoded, about = codec.encoded
        text = f"{plural(shards.total, 'image')} as {encoded} in {plural(len(shards.shards), 'shard')}"
        about |= {"run": args.run, "n": shards.total, "folder": args.out}
        options.print_result(f"{text}: {args.out}", args.out, **about)
