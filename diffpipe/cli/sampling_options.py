"""The options of commands that generate. Nothing here imports torch, so `--help` is quick."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.experiment.sampling_options import NAMES, sampling_overrides
from diffpipe.plugins import BUILT_IN


def add_to(parser: argparse.ArgumentParser) -> None:
    """The options of sampling, the weights and the runtime. The run's config has the defaults."""
    options.add_seed(parser, "image i depends on the seed and i alone")
    text = "class of all images, by its number or its name (default: image i has class i mod classes)"
    parser.add_argument("--label", metavar="CLASS", help=text)
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(sorted(BUILT_IN['samplers']))} or a plug-in's, for a diffusion",
    )
    parser.add_argument("--steps", type=int, help="steps from noise to image")
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help="trailing, leading, linspace, karras or log_snr: which noise levels they visit",
    )
    parser.add_argument("--eta", type=float, help="noise of ddim, from 0 (none) to 1")
    parser.add_argument("--churn", type=float, help="noise of edm over all steps, such as 40; 0 is none")
    parser.add_argument(
        "--variance", choices=("small", "large"), help="of the ancestral sampler: the posterior's or beta"
    )
    parser.add_argument("--clip", choices=("true", "false"), help="clip each predicted x_0 to [-1, 1]")
    parser.add_argument(
        "--dynamic-threshold",
        type=float,
        metavar="QUANTILE",
        help="clip it to this quantile of its own instead, such as 0.995, for large guidance",
    )
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance: 1 is none, more exaggerates the label"
    )
    parser.add_argument(
        "--guide",
        metavar="RUN",
        help="guide by an earlier checkpoint or a smaller run of the same data instead (autoguidance); none: by no run",
    )
    parser.add_argument(
        "--guidance-interval", metavar="LOW,HIGH", help="guide only where sigma/alpha lies between these two"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="factor on the normal noise of a flow, VAE, GAN or adversarial denoiser, divisor of an autoregressive "
        "model's logits; 0 is no noise",
    )
    parser.add_argument(
        "--top-k", type=int, help="an autoregressive model draws each token from so many likeliest values"
    )
    parser.add_argument("--top-p", type=float, help="and from the fewest that have this probability together")
    parser.add_argument("--codec", metavar="RUN", help="current path of the VAE of a latent diffusion run")
    options.add_weights(parser)
    options.add_runtime(parser, "auto")


def overrides(args: argparse.Namespace) -> list[str]:
    """The options on the command line, as overrides of the run's config."""
    codec = [f"stage.codec.run={args.codec}"] if args.codec else []
    return [*codec, *sampling_overrides(options.values(args, *NAMES))]
