"""The HTML page of a comparison, which needs no other file. `templates/compare.html` is its text and its layout."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from diffpipe.plural import plural
from diffpipe.report.comparison_table import (
    COST_COLUMNS,
    DASH,
    FORMAT_STAGE,
    ON_DISK,
    REAL_IMAGES,
    Comparison,
    TableColumn,
    decimals,
    quality_columns,
)
from diffpipe.report.page import render
from diffpipe.report.run_summary import RunSummary


def comparison_page(comparison: Comparison, figures: Mapping[str, tuple[str, Image.Image]]) -> str:
    """The page as text. figures: by name, a caption (such as "samples") and a row of images."""
    summaries, protocol = comparison.summaries, comparison.protocol
    return render(
        "compare.html",
        title=", ".join(summary.name for summary in summaries),
        summary=_opening_sentence(protocol),
        quality=_quality(comparison),
        remarks=comparison.remarks,
        formats=comparison.formats,
        likelihood_n=f"{protocol['likelihood_n']:,}",
        figures=[_figure(name, caption, image) for name, (caption, image) in figures.items()],
        cost=_table(COST_COLUMNS, summaries),
        sampling=_sampling(protocol["sampling"]),
        reasons=[(run.name, "; ".join(dict.fromkeys(run.missing.values()))) for run in summaries if run.missing],
        details=[*((run.name, _json(_details(run))) for run in summaries), ("All of them", _json(protocol))],
        dash=DASH,
        real_images=REAL_IMAGES,
    )


def _opening_sentence(protocol: Mapping[str, Any]) -> str:
    networks = ", ".join(dict.fromkeys(metric["extractor"] for metric in protocol["metrics"].values()))
    if not networks:
        return "None of these families generates images."
    n, reference_n = protocol["n"], protocol["reference"]["n"]
    return f"{n:,} images of each family are compared with {reference_n:,} real ones in the features of {networks}."


def _quality(comparison: Comparison) -> dict[str, Any]:
    """The table of scores, likelihoods and sizes, with a row for each file format."""
    metrics, formats = comparison.protocol["metrics"], comparison.formats
    columns = quality_columns(metrics, comparison.floor, compressed=formats is not None)
    table = _table(columns, comparison.summaries)
    absent = {"text": None, "note": "", "best": False, "reason": "a file format, and no model"}
    for name, size in (formats or {}).items():
        cells = [absent | {"text": column.show(size)} if column is ON_DISK else absent for column in columns]
        table["runs"].append({"name": name, "stage": FORMAT_STAGE, "cells": cells})
    return table


def _table(columns: Sequence[TableColumn], summaries: Sequence[RunSummary]) -> dict[str, Any]:
    """The headings, a row of cells per run, and the texts of the floor, which is empty where no column has one."""
    best = [column.best(summaries) for column in columns]
    runs = [
        {
            "name": summary.name,
            "stage": summary.stage,
            "cells": [_cell(column, summary, names) for column, names in zip(columns, best, strict=True)],
        }
        for summary in summaries
    ]
    has_floor = any(column.floor is not None for column in columns)
    floor = ["" if column.floor is None else column.show(column.floor) for column in columns] if has_floor else []
    return {"headings": [column.heading for column in columns], "runs": runs, "floor": floor}


def _cell(column: TableColumn, summary: RunSummary, best: set[str]) -> dict[str, Any]:
    return {
        "text": column.text(summary),
        "note": column.note(summary),
        "best": summary.name in best,
        "reason": summary.missing.get(column.missing, ""),
    }


def _figure(name: str, caption: str, image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    png = base64.b64encode(file.getvalue()).decode()
    return {"name": name, "caption": caption, "png": png, "width": image.width, "height": image.height}


def _sampling(how: Mapping[str, Any]) -> dict[str, str]:
    """How the sampling speed was measured, in words."""
    on_cpu = how["device"] == "CPU"
    return {
        "batch": str(how["batch"]),
        "precision": how["precision"],
        "processes": plural(how["processes"], "process", "processes"),
        "device": plural(how["threads"], "CPU thread") if on_cpu else how["device"],
    }


def _details(summary: RunSummary) -> dict[str, object]:
    details = {
        "run": summary.run,
        "checkpoint": summary.checkpoint,
        "step": summary.step,
        "weights": summary.weights,
        "class-conditional": summary.conditional,
        "sampler": summary.sampler,
        "scores": summary.score_file,
    }
    bits = summary.bits_per_dim
    if bits:
        given = " given the class" if summary.conditional else ""
        details["bits/dim"] = f"{decimals(3)(bits['value'])} ± {decimals(3)(bits['standard_error'])}{given}"
    return details


def _json(tree: Mapping[str, object]) -> str:
    return json.dumps(dict(tree), indent=2, ensure_ascii=False)
