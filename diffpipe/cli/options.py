"""Options that several commands have."""

from __future__ import annotations

import argparse


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that generates; what is not given is as the run's config says."""
    parser.add_argument("--seed", type=int, default=0, help="image i depends on (seed, i) alone (default %(default)s)")
    parser.add_argument("--label", type=int, help="the class of all images; default: image i is of class i mod classes")
    parser.add_argument("--sampler", choices=["ddim", "ancestral"], help="how to go from noise to image")
    parser.add_argument("--steps", type=int, help="network evaluations an image")
    parser.add_argument("--eta", type=float, help="noise of ddim, from 0 (none) to 1")
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance: 1 is none, more exaggerates the label"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="of a flow, VAE, GAN or adversarial denoiser: factor on the normal noise, 0 for no noise",
    )
    parser.add_argument("--codec", metavar="RUN", help="where the VAE of a latent diffusion run lies by now")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def sampler_overrides(args: argparse.Namespace) -> list[str]:
    """The sampling options that were given, as overrides of the run's config."""
    given = {"kind": args.sampler, "steps": args.steps, "eta": args.eta, "guidance": args.guidance}
    given["temperature"] = args.temperature
    codec = [f"stage.codec.run={args.codec}"] if args.codec else []
    return [*codec, *(f"stage.sampler.{key}={value}" for key, value in given.items() if value is not None)]


def bound_overrides(args: argparse.Namespace) -> list[str]:
    """How many evaluations a likelihood may cost, where it was said, as overrides of the run's config."""
    given = {"vlb_steps": args.steps, "importance_samples": getattr(args, "importance_samples", None)}
    return [f"stage.sampler.{key}={value}" for key, value in given.items() if value is not None]
