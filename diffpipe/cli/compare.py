"""`diffpipe compare RUN… --reference SHARDS --out DIR`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from diffpipe import __version__
from diffpipe.errors import UserError
from diffpipe.experiment.run import Run, open_run
from diffpipe.metrics.evaluate import CHUNK, METRICS, parse_metric
from diffpipe.report.comparison import ComparisonRunner, MeasuredRun, require_comparable, require_one_size
from diffpipe.report.comparison_table import REAL, Comparison, markdown
from diffpipe.report.html_report import comparison_page
from diffpipe.report.image_rows import ImageRow, row_image, stack_rows
from diffpipe.report.run_summary import RunSummary
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

_LITE0 = ["fd", "kid", "precision", "recall", "density", "coverage"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN[,key=value…]",
        help="a run or a checkpoint; key=value changes how it samples in this row alone: "
        "fast=runs/ddpm,kind=ddim,steps=4. vlb_steps=60 estimates a diffusion's bits/dim from so many timesteps "
        "instead of all; codec=RUN is where the VAE of a latent run lies by now",
    )
    parser.add_argument("--reference", required=True, metavar="SHARDS", help="the real images to compare with")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for index.html, compare.json, …")
    parser.add_argument("--n", type=int, default=1000, help="images of each family that are scored (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of the likelihood's noise (%(default)s)")
    parser.add_argument(
        "--nll-n", type=int, default=500, help="reference images to explain and to reconstruct (%(default)s)"
    )
    parser.add_argument(
        "--metrics",
        default=",".join(f"{kind}_efficientnet_lite0" for kind in _LITE0),
        help=f"of {', '.join(METRICS)}, with commas (default: all of efficientnet_lite0)",
    )
    parser.add_argument(
        "--floor", metavar="SHARDS", help="other real images, to score beside the families (default: what they saw)"
    )
    parser.add_argument("--inception", metavar="FILE", help="weights for fid and kid (default: downloaded once)")
    parser.add_argument("--fresh", action="store_true", help="measure also the scores that the runs hold already")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


class Entry(NamedTuple):
    """One row as the command line asks for it. overrides: `key=value` words for the run's config."""

    name: str
    path: Path
    overrides: tuple[str, ...]


def parse_entries(words: Sequence[str]) -> list[Entry]:
    """The rows of `[NAME=]RUN[,key=value…]` words, each of its own name. Raises UserError."""
    entries = [_entry(word) for word in words]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} rows are called {name}; give each a name of its own: NAME=RUN")
    return entries


def _entry(word: str) -> Entry:
    head, *settings = word.split(",")
    name, equals, place = head.partition("=")
    place = place if equals else head
    path = Path(place)
    if not equals:
        whole = path.resolve()
        name = whole.parents[1].name if whole.parent.name == "checkpoints" else whole.name
    if not (name and place):
        raise UserError(f"{word!r} is no row of a comparison: write RUN, or NAME=RUN, then ,key=value where you like")
    overrides = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise UserError(f"{word!r}: {setting!r} sets nothing; write key=value, such as steps=4")
        overrides.append(f"stage.codec.run={value}" if key == "codec" else f"stage.sampler.{key}={value}")
    return Entry(name, path, tuple(overrides))


def run(args: argparse.Namespace) -> None:
    entries, metrics = parse_entries(args.runs), args.metrics.split(",")
    for name in metrics:
        parse_metric(name)
    for option, value in (("--n", args.n), ("--nll-n", args.nll_n)):
        if value < 2:
            raise UserError(f"{option} {value}: give 2 or more")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: _make_folder(args.out) if runtime.main else None)
        opened = {entry.name: _open(entry, args.raw, runtime) for entry in entries}
        require_one_size({name: each.shape[:2] for name, each in opened.items()})
        bench = ComparisonRunner.prepare(args, metrics, list(opened.values()), runtime)
        measure_latents = {}
        for i, entry in enumerate(entries, 1):
            print_on_rank_zero(
                runtime, f"{i}/{len(entries)} {entry.name}: {opened[entry.name].experiment.stage.describe()}"
            )
            measure_latents[entry.name] = bench.measure(entry.name, str(entry.path), opened[entry.name])
        require_comparable({name: each.scored for name, each in measure_latents.items()})
        comparison = _comparison(list(measure_latents.values()), bench)
        runtime.comm.raise_on_all_ranks(
            lambda: _write(comparison, measure_latents, bench, args.out) if runtime.main else None
        )
        if runtime.main:
            print(markdown(comparison), flush=True)
        print_on_rank_zero(runtime, f"{args.out}/index.html, compare.json, table.md, samples.png")


def _open(entry: Entry, raw: bool, runtime: Runtime) -> Run:
    try:
        return open_run(entry.path, entry.overrides, runtime, raw=raw)
    except UserError as error:
        raise UserError(f"{entry.name}: {error}") from error


def _comparison(measure_latents: Sequence[MeasuredRun], bench: ComparisonRunner) -> Comparison:
    args, runtime = bench.args, bench.runtime
    results = [each.scored.result for each in measure_latents if each.scored]
    said = results[0].protocol if results else {"metrics": {}}
    sources = {"reference": {"n": bench.reference.n, **bench.reference.describe()}, "floor": said.get("floor")}
    device = torch.cuda.get_device_name() if runtime.device.type == "cuda" else "CPU"
    sampling = {"batch": CHUNK, "precision": str(runtime.dtype).removeprefix("torch."), "device": device}
    protocol = {
        "n": args.n,
        "seed": args.seed,
        "metrics": said["metrics"],
        **sources,
        "likelihood_n": bench.explained.n,
        "likelihood_precision": "float32",
        "sampling": sampling | {"threads": torch.get_num_threads(), "processes": runtime.world},
        "versions": {"diffpipe": __version__, "torch": str(torch.__version__)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Comparison([each.summary for each in measure_latents], results[0].floor if results else None, protocol)


def _write(
    comparison: Comparison, measure_latents: Mapping[str, MeasuredRun], bench: ComparisonRunner, out: Path
) -> None:
    """The page, the JSON, the table and the picture. Raises UserError."""
    rows = [ImageRow(REAL, "", bench.real)]
    strips = {REAL: ("of the reference", row_image(bench.real))}
    for name, (summary, shown, label, _) in measure_latents.items():
        if shown is not None:
            rows.append(ImageRow(name, _note(summary, label, bench.classes), shown))
            strips[name] = (rows[-1].note, row_image(shown))
    by_class = any(summary.conditional for summary in comparison.summaries)
    headings = [str(i % bench.classes) for i in range(len(bench.real))] if by_class else []
    tree = {
        "families": [dataclasses.asdict(summary) for summary in comparison.summaries],
        "floor": comparison.floor,
        "protocol": comparison.protocol,
    }
    try:
        (out / "compare.json").write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (out / "table.md").write_text(markdown(comparison) + "\n", encoding="utf-8")
        (out / "index.html").write_text(comparison_page(comparison, strips), encoding="utf-8")
        stack_rows(rows, headings).save(out / "samples.png", optimize=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def _note(summary: RunSummary, label: str, classes: int) -> str:
    """What a row of images shows: the family, what of it, and in how many evaluations of its networks."""
    evaluations = (summary.sampling or {}).get("evaluations")
    many = "" if evaluations is None else f" in {evaluations:g} evaluation{'' if evaluations == 1 else 's'}"
    any_class = ", any class" if summary.sampling and classes and not summary.conditional else ""
    return f"{summary.stage}: {label}{many}{any_class}"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a folder that can be written") from error
