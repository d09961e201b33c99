"""A comparison as one HTML page that needs no other file: tables, samples, and how each number was made."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from diffpipe.report.comparison_table import COST, DASH, REAL, Comparison, TableColumn, decimals, quality
from diffpipe.report.run_summary import RunSummary

STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #666; --best: #e2f2e4; --paper: #fff; --ink: #1a1a1a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #a5a5a5; --best: #1f4327; --paper: #161616; --ink: #e8e8e8; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; color: var(--soft); padding: 0 0 .5rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(60rem, 92vw); }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; font-weight: 600; }
th[scope=row], th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td.best { background: var(--best); font-weight: 600; }
tr.real { color: var(--soft); font-style: italic; }
small, figcaption span { color: var(--soft); font-weight: 400; }
figure { margin: 0 0 1rem; } figure img { display: block; max-width: none; }
pre { overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
"""


def comparison_page(comparison: Comparison, strips: Mapping[str, tuple[str, Image.Image]]) -> str:
    """The page. strips: by name, what a row of images shows (such as "samples") and the row."""
    summaries, said = comparison.summaries, comparison.protocol
    names = ", ".join(summary.name for summary in summaries)
    parts = [
        f"<h1>{escape(names)}</h1>",
        f"<p>{escape(_summary(comparison))}</p>",
        "<h2>Quality</h2>",
        _table(_QUALITY.format(**_sizes(comparison)), quality(said["metrics"], comparison.floor), comparison),
        "<h2>Samples</h2>",
        *(_figure(name, what, strip) for name, (what, strip) in strips.items()),
        "<h2>Cost</h2>",
        _table(_cost(comparison), COST, comparison),
        _reasons(summaries),
        "<h2>How it was made</h2>",
        *(_details(summary.name, _about(summary)) for summary in summaries),
        _details("All of them", dict(said)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{escape(names)}: diffpipe compare</title>"
    style = f"<style>{STYLE}</style>"
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}{title}{style}</head>\n<body>\n<main>\n{body}\n</main>\n'
        f"</body>\n</html>\n"
    )


_QUALITY = (
    "The best of each column is marked. FD and KID: distances of the generated from the real images in the features of "
    "a network; precision and density: whether images are real; recall and coverage: whether none are missing. "
    "bits/dim: {likelihood_n} reference images, lower is a better explanation; a bound is above the true value. "
    "Reconstruction: mean squared error of pixels in [−1, 1]. The last row is the floor: as many real images against "
    "the same reference."
)


def _sizes(comparison: Comparison) -> dict[str, str]:
    return {key: f"{comparison.protocol[key]:,}" for key in ("n", "likelihood_n")}


def _summary(comparison: Comparison) -> str:
    said = comparison.protocol
    networks = ", ".join(dict.fromkeys(about["extractor"] for about in said["metrics"].values()))
    scored = f"{said['n']:,} images of each family are compared with {said['reference']['n']:,} real ones"
    return f"{scored} in the features of {networks}." if networks else "None of these families generates images."


def _cost(comparison: Comparison) -> str:
    how = comparison.protocol["sampling"]
    where = how["device"] if how["device"] != "CPU" else _several(how["threads"], "CPU thread")
    processes = _several(how["processes"], "process")
    return (
        f"Training: the median rate of each run's log, and the time of its images at that rate. "
        f"Sampling: measured here, {how['batch']} images at a time, {how['precision']}, {processes} with {where}. "
        f"Evaluations and parameters: of the run's own networks, and parameters of its codec's with them."
    )


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def _table(caption: str, columns: Sequence[TableColumn], comparison: Comparison) -> str:
    summaries = comparison.summaries
    best = [column.best(summaries) for column in columns]
    heads = "".join(f'<th scope="col">{escape(column.heading)}</th>' for column in columns)
    rows = [
        f'<tr><th scope="row">{escape(summary.name)} <small>{escape(summary.stage)}</small></th>'
        + "".join(_cell(column, summary, marked) for column, marked in zip(columns, best, strict=True))
        + "</tr>"
        for summary in summaries
    ]
    if any(column.floor is not None for column in columns):
        cells = "".join(f"<td>{'' if c.floor is None else escape(c.show(c.floor))}</td>" for c in columns)
        rows.append(f'<tr class="real"><th scope="row">{REAL}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table>\n<caption><span>{escape(caption)}</span></caption>\n'
        f'<thead><tr><th scope="col">family</th>{heads}</tr></thead>\n<tbody>\n' + "\n".join(rows)
    ) + "\n</tbody>\n</table></div>"


def _cell(column: TableColumn, summary: RunSummary, best: set[str]) -> str:
    text = column.text(summary)
    if text is None:
        return f'<td title="{escape(summary.missing.get(column.missing, ""))}">{DASH}</td>'
    note = column.note(summary)
    marked = ' class="best"' if summary.name in best else ""
    return f"<td{marked}>{escape(text)}{f' <small>{escape(note)}</small>' if note else ''}</td>"


def _figure(name: str, what: str, strip: Image.Image) -> str:
    file = io.BytesIO()
    strip.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><figcaption>{escape(name)} <span>{escape(what)}</span></figcaption><div class="scroll">'
        f'<img src="data:image/png;base64,{data}" width="{strip.width}" height="{strip.height}" '
        f'alt="{escape(f"{name}: {what}")}"></div></figure>'
    )


def _reasons(summaries: Sequence[RunSummary]) -> str:
    items = "".join(
        f"<dt>{escape(summary.name)}</dt><dd>{escape('; '.join(dict.fromkeys(summary.missing.values())))}</dd>"
        for summary in summaries
        if summary.missing
    )
    return f"<h2>What a {DASH} means</h2><dl>{items}</dl>" if items else ""


def _about(summary: RunSummary) -> dict[str, object]:
    bits = summary.bits_per_dim
    told = {
        "run": summary.run,
        "checkpoint": summary.checkpoint,
        "step": summary.step,
        "weights": summary.weights,
        "class-conditional": summary.conditional,
        "sampler": summary.sampler,
        "scores": summary.score_file,
    }
    if bits:
        given = " given the class" if summary.conditional else ""
        told["bits/dim"] = f"{decimals(3)(bits['value'])} ± {decimals(3)(bits['standard_error'])}{given}"
    return told


def _details(title: str, about: Mapping[str, object]) -> str:
    text = json.dumps(about, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
