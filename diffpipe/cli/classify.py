"""`diffpipe classify RUN SHARDS`."""

from __future__ import annotations

import argparse
import datetime
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffpipe import __version__
from diffpipe.cli.images import ShardImages
from diffpipe.cli.likelihood import is_conditional, labelled_images, require_likelihood, score_images, scoring
from diffpipe.cli.runs import Run, bound_overrides, open_run
from diffpipe.cli.terminal import say
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.metrics import calibration, protocol
from diffpipe.metrics.calibration import Reliability
from diffpipe.rng import permutation
from diffpipe.train.runtime import Runtime

NAMED = 30  # classes that a picture still has room to name and to count


class Calibration(NamedTuple):
    """What the probabilities of one half of the images are worth. log_loss: -log p(y|x) of the true label, in nats."""

    log_loss: float
    reliability: Reliability


class Classified(NamedTuple):
    """What the classes' likelihoods say of the images.

    confusion: images by true class (row) and predicted one (column). raw, tempered: of the half of the images that the
    temperature was not fitted on, before and after dividing the logits by it.
    """

    confusion: Int[Tensor, "k k"]
    temperature: float
    raw: Calibration
    tempered: Calibration

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        return int(self.confusion.diagonal().sum())


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
        images = runtime.together(lambda: labelled_images(args.shards, opened, args.n))
        labels = runtime.together(lambda: images.labels(range(images.n)))
        prior = runtime.together(lambda: log_prior(opened, args.prior))
        found = classify(log_likelihoods(opened, images, args.seed, runtime) + prior, labels, args.seed)
        out = args.out or _default_out(opened, images.n, args.steps)
        told = {"prior": args.prior, "seed": args.seed, "precision": str(runtime.dtype).removeprefix("torch.")}
        runtime.together(lambda: _write(found, opened, images, told, out) if runtime.main else None)
        say(runtime, f"{table(found)}\n{out}\n{out.with_suffix('.png')}")


def log_likelihoods(opened: Run, images: ShardImages, seed: int, runtime: Runtime) -> Float64[Tensor, "n k"]:
    """log p(x|y) in nats, or the bound on it, of every image under every label. A collective.

    An image meets every label with the same noise, so that what the noise adds cancels in their comparison (Li et al.
    2023, section 3.3). Raises UserError where the stage has no likelihood.
    """
    classes, dims = opened.shape.classes, opened.shape.channels * opened.shape.resolution**2
    columns = []
    for label in range(classes):
        found = score_images(opened, images, seed, runtime, label, f"score as class {label + 1}/{classes}")
        require_likelihood(found, opened)
        assert found.unit.startswith("bits/dim"), "likelihoods are in bits/dim"
        columns.append(-dims * math.log(2) * found.values["score"])
    return torch.stack(columns, dim=1)


def log_prior(opened: Run, prior: str) -> Float64[Tensor, " k"]:
    """log p(y) by `prior`. Of data: one image of each class is added, as by Laplace, so that none is impossible."""
    classes = opened.shape.classes
    counts = torch.zeros(classes, dtype=torch.int64)
    if prior == "data":
        try:
            data = opened.experiment.data
            shards = shard_set.load(data.trained_on, cache=data.shard_cache)
            counts = torch.bincount(sequential_reader.labels(shards, range(shards.total)), minlength=classes)
        except UserError as error:
            raise UserError(f"--prior data counts the run's data.train: {error}; or give --prior uniform") from error
    return (counts + 1).double().log() - math.log(int(counts.sum()) + classes)


def classify(logits: Float64[Tensor, "n k"], labels: Int[Tensor, " n"], seed: int) -> Classified:
    """Held against the true labels: the likeliest classes, and p(y|x) on a half of the images drawn by the seed.

    logits: log p(x|y) + log p(y). A temperature is fitted on the other half.
    """
    n, k = logits.shape
    confusion = torch.bincount(k * labels + logits.argmax(dim=1), minlength=k * k).reshape(k, k)
    order = torch.from_numpy(permutation(n, seed, "calibration"))
    fitted, held = order[: n // 2], order[n // 2 :]
    temperature = calibration.fit_temperature(logits[fitted], labels[fitted])

    def judge(logits: Tensor) -> Calibration:
        reliability = calibration.reliability(logits.softmax(dim=1), labels[held])
        return Calibration(calibration.log_loss(logits, labels[held]), reliability)

    return Classified(confusion, temperature, judge(logits[held]), judge(logits[held] / temperature))


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


def draw(found: Classified, names: list[str], title: str) -> Figure:
    """The confusion matrix, in shares of each true class, and the reliability of the raw and the tempered posterior."""
    k = len(names)
    figure = Figure(figsize=(11, 6.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[2, 1])
    matrix = figure.add_subplot(grid[:, 0])
    shares = found.confusion / found.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    matrix.set(xlabel="predicted class", ylabel="true class", title="confusion: images, shaded by share of the row")
    if k <= NAMED:
        matrix.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        matrix.set_yticks(range(k), names)
        for true, predicted in found.confusion.nonzero().tolist():
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            count = int(found.confusion[true, predicted])
            matrix.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=120 / (k + 8))
    panels = {"raw posterior": found.raw, f"at temperature {found.temperature:.3g}": found.tempered}
    for row, (name, each) in enumerate(panels.items()):
        _reliability(figure.add_subplot(grid[row, 1]), each.reliability, name)
    figure.suptitle(title)
    return figure


def _reliability(axes: Axes, found: Reliability, name: str) -> None:
    count, confidence, accuracy = (column.numpy() for column in found)
    there, left, width = count > 0, np.arange(len(count)) / len(count), 1 / len(count)
    axes.bar(left[there], accuracy[there], width, align="edge", edgecolor="white")
    axes.plot(confidence[there], accuracy[there], ".", color="black", markersize=4)
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axes.bar(left, count / count.sum(), width, align="edge", fill=False, edgecolor="tab:orange")
    axes.text(0.03, 0.93, "share of images", color="tab:orange", fontsize=8, va="top")
    axes.text(0.03, 0.84, "accuracy in the bin", color="tab:blue", fontsize=8, va="top")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability of the predicted class")
    axes.set_title(f"{name}: ECE {found.error:.3f}", fontsize=10)


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
        draw(found, names, title).savefig(out.with_suffix(".png"))
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
