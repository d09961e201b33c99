"""`diffpipe classify RUN SHARDS`."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch

from diffpipe import __version__
from diffpipe.cli.options import bound_overrides
from diffpipe.errors import UserError
from diffpipe.evaluation.classification import Classified, classify, log_likelihoods, log_prior
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import is_conditional, labelled_images, scoring
from diffpipe.experiment.run import Run, open_run
from diffpipe.metrics import calibration, protocol
from diffpipe.report.classification_plot import plot_classification
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a class-conditional run, or one checkpoint in it")
    parser.add_argument("shards", metavar="SHARDS", help="labelled images, taken at the run's resolution")
    parser.add_argument("--n", type=int, default=1000, help="how many of them (default %(default)s)")
    parser.add_argument(
        "--steps", type=int, help="network evaluations an image and class for a diffusion's bound (default: all)"
    )
    parser.add_argument(
        "--prior",
        choices=["data", "uniform"],
        default="data",
        help="p(y): the classes' shares of the run's data.train, or all alike (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise in a bound (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON, a picture beside it (default: in scores/)")


def run(args: argparse.Namespace) -> None:
    if args.n < 4:
        raise UserError(f"--n {args.n}: two halves of at least 2 images need 4 or more")
    with Runtime.start(args.precision, args.device) as runtime:
        opened = open_run(args.run, bound_overrides(args), runtime, raw=args.raw)
        scoring(opened)
        if not is_conditional(opened):
            raise UserError(
                f"{args.run}: classes are told apart by p(x|y), and this run of stage.kind "
                f"{opened.experiment.stage.kind} knows none; give a ddpm, vae or flow trained with data.labels=true "
                f"and stage.conditional=true"
            )
        images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(args.shards, opened, args.n))
        labels = runtime.comm.raise_on_all_ranks(lambda: images.labels(range(images.n)))
        prior = runtime.comm.raise_on_all_ranks(lambda: log_prior(opened, args.prior))
        found = classify(log_likelihoods(opened, images, args.seed, runtime) + prior, labels, args.seed)
        out = args.out or _default_out(opened, images.n, args.steps)
        told = {"prior": args.prior, "seed": args.seed, "precision": str(runtime.dtype).removeprefix("torch.")}
        runtime.comm.raise_on_all_ranks(lambda: _write(found, opened, images, told, out) if runtime.main else None)
        print_on_rank_zero(runtime, f"{table(found)}\n{out}\n{out.with_suffix('.png')}")


def table(found: Classified) -> str:
    """The accuracy with its 95% interval, and the posterior's worth as it is and after the temperature."""
    low, high = calibration.wilson(found.right, found.n)
    accuracy = f"{found.right / found.n:.4f} ({low:.4f} to {high:.4f}; {found.n} images)"
    raw, tempered = found.raw, found.tempered
    titles = {"accuracy": accuracy, "p(y|x)": f"{'raw':>10}{'tempered':>12}"}
    titles["-log p(y|x)"] = f"{raw.log_loss:10.4f}{tempered.log_loss:12.4f}  nats"
    titles["ECE"] = f"{raw.reliability.error:10.4f}{tempered.reliability.error:12.4f}  expected calibration error"
    lines = [f"{title:>12}  {value}" for title, value in titles.items()]
    if found.temperature > 2:
        lines.append(
            f"raw probabilities are far too sure: they add up every pixel's error; divide the logits by the "
            f"temperature, {found.temperature:.4g}, fitted on the other half of the images"
        )
    return "\n".join(lines)


def _write(found: Classified, opened: Run, images: ShardImages, told: dict[str, Any], out: Path) -> None:
    low, high = calibration.wilson(found.right, found.n)
    scores = {"accuracy": found.right / found.n, "accuracy_low": low, "accuracy_high": high}
    for name, each in (("posterior", found.raw), ("tempered", found.tempered)):
        scores |= {f"{name}_log_loss": each.log_loss, f"{name}_ece": each.reliability.error}
    names = _names(images, opened.shape.classes)
    held = found.n - found.n // 2
    said = {
        "metrics": {
            "accuracy": {"interval": "Wilson 95%"},
            "log_loss": {"unit": "nats", "n": held},
            "ece": {"bins": calibration.BINS, "n": held},
        },
        "model": {"stage": opened.experiment.stage.kind, **told, **opened.describe()},
        "reference": {"n": found.n, **images.describe()},
        "versions": {"diffpipe": __version__, "torch": str(torch.__version__)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    diagrams = {
        name: {column: values.tolist() for column, values in each.reliability._asdict().items()}
        for name, each in (("posterior", found.raw), ("tempered", found.tempered))
    }
    found_too = {"temperature": found.temperature, "classes": names, "confusion": found.confusion.tolist()}
    tree = {"scores": scores, "floor": {}, **found_too, "reliability": diagrams, "protocol": said}
    protocol.write_json(tree, out)
    accuracy = f"accuracy {scores['accuracy']:.3f} ({low:.3f} to {high:.3f})"
    title = f"{opened.title}: {accuracy}"
    try:
        plot_classification(found, names, title).savefig(out.with_suffix(".png"))
    except OSError as error:
        raise UserError(
            f"{out.with_suffix('.png')}: cannot be written ({error.strerror}); give another --out"
        ) from error


def _names(images: ShardImages, classes: int) -> list[str]:
    known = images.shards.classes or []
    return [known[i] if i < len(known) else str(i) for i in range(classes)]


def _default_out(opened: Run, n: int, steps: int | None) -> Path:
    how = "" if steps is None else f"steps{steps}-"
    name = f"classify-step-{opened.checkpoint.step:08d}-{how}n{n}.json"
    return opened.home / "scores" / name
