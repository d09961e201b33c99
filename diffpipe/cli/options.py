"""Options that several commands share. Nothing here imports torch, so `--help` is quick."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffpipe import output
from diffpipe.experiment import sampling_options
from diffpipe.files import user_path
from diffpipe.machine import process_warnings, processor_count
from diffpipe.plugins import BUILT_IN

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


def example(*commands: str, notes: str = "") -> str:
    """The end of a command's --help, which is printed as it is: notes, filled to the line, and examples."""
    lines = ["example:", *(f"  {command}" for command in commands)]
    return "\n".join([*textwrap.wrap(notes, 100), *([""] if notes else []), *lines])


def print_result(text: str, *files: Path, **values: Any) -> None:
    """Print the result on stdout, and on stderr the files that hold it. values: the same result for --json."""
    output.current.result(text, *files, **values)


def print_notes(notes: Iterable[str]) -> None:
    """Print remarks on a result, on stderr."""
    for note in notes:
        output.current.note(note)


def values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """These options by name, for a library call that has arguments of the same names."""
    return {name: getattr(args, name) for name in names}


def worker_processes(args: argparse.Namespace) -> int:
    """--workers, or as many as there are processors. Raises UserError where the machine cannot hold them."""
    if args.workers is None:
        return processor_count()
    for sentence in process_warnings("--workers", args.workers):
        output.current.remark(f"warning: {sentence}")
    return args.workers


def add_run(parser: argparse.ArgumentParser, text: str = "a run directory, or one checkpoint in it") -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help=text)


def add_shards(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("shards", metavar="SHARDS", help=text)


def add_count(parser: argparse.ArgumentParser, default: int, text: str) -> None:
    parser.add_argument("--n", type=int, default=default, help=f"{text} (default %(default)s)")


def add_measured_count(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--n", type=int, help=f"{text} (default 1000, or all where they are fewer)")


def add_seed(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{text} (default %(default)s)")


def add_weights(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    text = "length of the moving average, such as 0.1, of a run with ema.kind=power (default: the first it keeps)"
    choice.add_argument("--ema", type=float, metavar="SIGMA_REL", help=text)


def add_runtime(parser: argparse.ArgumentParser, precision: str = "fp32") -> None:
    """--precision and --device, as `Runtime.start` takes them."""
    parser.add_argument("--precision", choices=PRECISIONS, default=precision, help="default %(default)s")
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="default %(default)s: CUDA where there is one"
    )


def add_metrics(parser: argparse.ArgumentParser, default: str, known: str) -> None:
    parser.add_argument("--metrics", default=default, help=f"separated by commas (default %(default)s); known: {known}")
    parser.add_argument("--inception", metavar="FILE", help="Inception weights for fid and kid (default: downloaded)")


def add_output_file(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--out", type=user_path, metavar="FILE", help=f"{text} (default: a file in the run's scores/)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options of every command that generates. The run's config has the defaults."""
    add_seed(parser, "image i depends on the seed and i alone")
    text = "class of all images, by its number or its name (default: image i has class i mod classes)"
    parser.add_argument("--label", metavar="CLASS", help=text)
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(sorted(BUILT_IN['samplers']))} or a plug-in's, for a diffusion",
    )
    parser.add_argument("--steps", type=int, help="steps from noise to image")
    parser.add_argument(
        "--spacing", help="trailing, leading, linspace, karras or log_snr: which noise levels they visit"
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
    add_weights(parser)
    add_runtime(parser, "auto")


def sampling_overrides(args: argparse.Namespace) -> list[str]:
    """The sampling options on the command line, as overrides of the run's config."""
    codec = [f"stage.codec.run={args.codec}"] if args.codec else []
    return [*codec, *sampling_options.sampling_overrides(values(args, *sampling_options.NAMES))]


def likelihood_overrides(args: argparse.Namespace) -> list[str]:
    """--steps on the command line, as an override of the run's config."""
    return [] if args.steps is None else [f"stage.sampler.vlb_steps={args.steps}"]
