"""A comparison of runs: each measured in the same way, then a page, a table, a JSON file and an image grid of all."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffpipe import __version__
from diffpipe.errors import UserError
from diffpipe.evaluation.image_formats import FormatSizes, format_sizes
from diffpipe.evaluation.image_grid import save_png
from diffpipe.evaluation.score_remarks import print_remarks
from diffpipe.experiment.run import Run, open_run
from diffpipe.files import atomic_write
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.plural import plural
from diffpipe.report.comparison_page import comparison_page
from diffpipe.report.comparison_rows import ComparisonRow
from diffpipe.report.comparison_runner import (
    ComparisonRunner,
    ComparisonSettings,
    MeasuredRun,
    require_comparable,
    require_one_size,
)
from diffpipe.report.comparison_table import REAL_IMAGES, Comparison, markdown
from diffpipe.report.image_rows import ImageRow, row_image, stack_rows
from diffpipe.report.run_summary import RunSummary
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def compare(rows: Sequence[ComparisonRow], settings: ComparisonSettings, out: Path) -> Comparison | None:
    """Measure each row and write index.html, compare.json, table.md and samples.png into `out`.

    Every process of a job calls it. Returns the comparison on rank 0, None elsewhere. Raises UserError.
    """
    settings.check()
    with Runtime.start(settings.precision, settings.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: _require_writable(out) if runtime.main else None)
        runs = {row.name: _open(row, settings, runtime) for row in rows}
        require_one_size({name: (run.shape.channels, run.shape.resolution) for name, run in runs.items()})
        runner = ComparisonRunner.prepare(settings, list(runs.values()), runtime)
        measured = {}
        for i, row in enumerate(rows, 1):
            print_on_rank_zero(runtime, f"{i}/{len(rows)} {row.name}: {runs[row.name].experiment.stage.describe()}")
            measured[row.name] = runner.measure(row.name, str(row.path), runs[row.name])
        require_comparable({name: run.scored for name, run in measured.items()})
        formats = format_sizes(runner.likelihood_images, runtime) if settings.compress else None
        comparison = _comparison(list(measured.values()), runner, formats)
        runtime.comm.raise_on_all_ranks(lambda: _write(comparison, measured, runner, out) if runtime.main else None)
        print_remarks(comparison.remarks, runtime)
        return comparison if runtime.main else None


def _open(row: ComparisonRow, settings: ComparisonSettings, runtime: Runtime) -> Run:
    try:
        return open_run(row.path, row.overrides, runtime, raw=settings.raw, ema=settings.ema)
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error


def _comparison(measured: Sequence[MeasuredRun], runner: ComparisonRunner, formats: FormatSizes | None) -> Comparison:
    results = [run.scored.result for run in measured if run.scored]
    floor = results[0].floor if results else None
    score_protocol = results[0].protocol if results else {"metrics": {}}
    sizes = None if formats is None else formats.bits_per_dim()
    summaries = [run.summary for run in measured]
    return Comparison(summaries, floor, _protocol(score_protocol, runner), sizes, _remarks(measured))


def _remarks(measured: Sequence[MeasuredRun]) -> list[str]:
    """The remarks on all scores; one that is not on each of them names its runs."""
    scored = [run for run in measured if run.scored]
    remarks = dict.fromkeys(remark for run in scored for remark in run.remarks)
    names = {remark: [run.summary.name for run in scored if remark in run.remarks] for remark in remarks}
    return [r if len(runs) == len(scored) else f"{', '.join(runs)}: {r}" for r, runs in names.items()]


def _protocol(score_protocol: Mapping[str, Any], runner: ComparisonRunner) -> dict[str, Any]:
    """How the numbers were made: the scores' protocol, and what the likelihood and the sampling speed depend on."""
    runtime = runner.runtime
    device = torch.cuda.get_device_name() if runtime.device.type == "cuda" else "CPU"
    sampling = {"batch": CHUNK, "precision": str(runtime.dtype).removeprefix("torch."), "device": device}
    return {
        "n": runner.n,
        "seed": runner.settings.seed,
        "metrics": score_protocol["metrics"],
        "reference": {"n": runner.reference.n, **runner.reference.describe()},
        "floor": score_protocol.get("floor"),
        "likelihood_n": runner.likelihood_images.n,
        "likelihood_precision": "float32",
        "sampling": sampling | {"threads": torch.get_num_threads(), "processes": runtime.comm.world},
        "versions": {"diffpipe": __version__, "torch": str(torch.__version__)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(comparison: Comparison, measured: Mapping[str, MeasuredRun], runner: ComparisonRunner, out: Path) -> None:
    """The page, the JSON, the table and the image grid. Raises UserError where a file cannot be written."""
    rows = [ImageRow(REAL_IMAGES, "", runner.real)]
    figures = {REAL_IMAGES: ("of the reference", row_image(runner.real))}
    for name, (summary, images, caption, *_) in measured.items():
        if images is not None:
            rows.append(ImageRow(name, _note(summary, caption, runner.classes), images))
            figures[name] = (rows[-1].note, row_image(images))
    by_class = any(summary.conditional for summary in comparison.summaries)
    headings = [str(i % runner.classes) for i in range(len(runner.real))] if by_class else []
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "compare.json", json.dumps(comparison.tree(), indent=2, allow_nan=False) + "\n")
        atomic_write(out / "table.md", markdown(comparison) + "\n")
        atomic_write(out / "index.html", comparison_page(comparison, figures))
        save_png(stack_rows(rows, headings), out / "samples.png", optimize=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def _note(summary: RunSummary, caption: str, classes: int) -> str:
    """The small print of an image row: the stage, samples or reconstructions, and the network evaluations per image."""
    evaluations = (summary.sampling or {}).get("evaluations")
    count = "" if evaluations is None else f" in {plural(f'{evaluations:g}', 'evaluation')}"
    any_class = ", any class" if summary.sampling and classes and not summary.conditional else ""
    return f"{summary.stage}: {caption}{count}{any_class}"


def _require_writable(out: Path) -> None:
    """Refuse a folder that cannot be made or written, before hours of work. Nothing is made yet."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "it cannot be written" if above.is_dir() else "it is no directory"
        raise UserError(f"{out}: {above}: {reason}; give a folder that can be written")
