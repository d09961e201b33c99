"""`diffpipe import SOURCE RUN`."""  # noqa: N999 (named for the command)

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.errors import UserError
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe import ddpm-cat-256 runs/cats",
        "diffpipe sample runs/cats samples/cats --sampler ddim --steps 50",
        "diffpipe train runs/cats/config.yaml data.train=shards/cats optimizer.lr=2e-5 train.steps=5000",
        "diffpipe import 64x64_diffusion.safetensors runs/adm --resolution 64 --attention-order new "
        "stage.schedule.kind=cosine",
        notes="SOURCE is a folder of diffusers with a UNet2DModel or a DiTTransformer2DModel and a DDPMScheduler or "
        "DDIMScheduler, its weights in safetensors; or a file that `diffpipe export RUN FILE.safetensors` wrote; "
        "or weights of guided-diffusion or EDM2 in safetensors. No code of it is run.",
    )
    parser.add_argument(
        "source", type=types.local_path, metavar="SOURCE", help="a diffusers folder, or a .safetensors file"
    )
    parser.add_argument("run", type=types.local_path, metavar="RUN", help="the run directory to make")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a value of the run's config")
    parser.add_argument(
        "--classes", type=int, metavar="N", help="classes of a diffusers folder whose network has a class embedding"
    )
    parser.add_argument("--codec", metavar="RUN", help="VAE run of a network that denoises latents")
    parser.add_argument(
        "--resolution", type=types.resolution, metavar="N|HxW", help="size of the images of guided-diffusion's weights"
    )
    parser.add_argument(
        "--attention-order",
        choices=["legacy", "new"],
        help="order of queries, keys and values in guided-diffusion's weights; new: use_new_attention_order=True",
    )


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import import_run

    if not args.source.exists() and (args.run.is_file() or (args.run / "model_index.json").exists()):
        raise UserError(
            f"SOURCE is {args.source}, which is not there; RUN is {args.run}, which looks like one: swap them"
        )
    imported = import_run(
        args.source,
        args.run,
        args.overrides,
        classes=args.classes,
        codec=args.codec,
        resolution=args.resolution,
        attention_order=args.attention_order,
    )
    if is_main_process():
        options.print_notes(imported.notes)
        shape = imported.shape
        size = f"{shape.resolution.height}x{shape.resolution.width}x{shape.channels}"
        parameters = f"{imported.parameters / 1e6:.2f} M parameters"
        text = f"{imported.experiment.stage.describe()}, {parameters}, images of {size}: {args.run}"
        about = {"stage": imported.experiment.stage.describe(), "parameters": imported.parameters}
        options.print_result(text, args.run, run=args.run, **about)
