"""The HTML page of one run, which needs no other file. `templates/run.html` is its text and its layout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffpipe.evaluation.score_remarks import TrainingData, score_remarks
from diffpipe.metrics.names import first_score, is_frechet, shown_name, shown_value
from diffpipe.plural import duration, plural
from diffpipe.report.comparison_table import decimals, three_digits
from diffpipe.report.page import render
from diffpipe.report.run_plots import log_notes, metric_plots, score_plots
from diffpipe.report.run_record import RunRecord
from diffpipe.report.run_scores import ScoreFile, series_of
from diffpipe.report.timeline import MOST_JOBS, job_rows, timeline, when

_JOBS_SHOWN = 5
_SCORES_SHOWN = 10
_MOST_PROTOCOLS = 20
_MOST_REMARKS = 5
_LONGEST_REASON = 2000
_LONGEST_WORD = 40  # characters of a value in a score's protocol
_MOST_BAD, _LONGEST_BAD = 100, 500  # messages of samples that could not be read, and characters of one


def run_page(record: RunRecord, *, version: str | None = None) -> str:
    """The page as text. version: of the run's files, for a page that a server keeps up to date; None for a file."""
    last = float(max(record.step, 1))
    plots = metric_plots(record.log, last)
    scores = score_plots(series_of(record.scores.files))
    grids, experiment = record.grids, record.config.experiment
    bad_samples = [] if record.state is None else record.state.bad_samples
    return render(
        "run.html",
        script="run.js",
        version=version,
        name=record.home.resolve().name,
        home=str(record.home.resolve()),
        home_word=shlex.quote(str(record.home.resolve())),
        stage=_stage(record),
        status=_status(record),
        figures=_figures(record),
        progress=_progress(record),
        grids=grids.grids,
        grids_note=_grids_note(record),
        generates=experiment is None or experiment.stage.generates,
        grid_every=None if experiment is None else experiment.sample.every,
        score_every=None if experiment is None else experiment.eval.every,
        plots=plots,
        log_notes=log_notes(record.log, plots),
        score_plots=scores,
        points=[plot.points() for plot in [*plots, *scores]],
        score_files=[_score_row(file) for file in reversed(record.scores.files)],
        scores_shown=_SCORES_SHOWN,
        score_remarks=_score_remarks(record),
        protocols=_protocols(record.scores.files),
        unreadable_scores=record.scores.unreadable,
        scores_left_out=record.scores.left_out,
        jobs=job_rows(record.jobs),
        jobs_shown=_JOBS_SHOWN,
        jobs_left_out=max(0, len(record.jobs) - MOST_JOBS),
        timeline=timeline(record.jobs, last),
        has_events=any(job.end != "unknown" for job in record.jobs),
        data=_data(record),
        bad_samples=[message[:_LONGEST_BAD] for message in bad_samples[:_MOST_BAD]],
        bad_count=len(bad_samples),
        config=record.config.rows,
        config_problem=record.config.problem,
        written=when(record.read_at),
    )


def _stage(record: RunRecord) -> str:
    experiment = record.config.experiment
    if experiment is not None:
        return experiment.stage.describe()
    stage = record.config.tree.get("stage")
    return str(stage.get("kind", "")) if isinstance(stage, dict) else ""


def _status(record: RunRecord) -> dict[str, str]:
    """The state of the run: a word for its style, a short text, and the reason behind it."""
    status = record.status
    reason = (status.reason or "")[:_LONGEST_REASON]
    kind = {"killed": "failed", "damaged": "failed"}.get(status.state, status.state)
    text: str = status.state
    if status.state == "running":
        reason = f"process {status.process} on {status.host}" if status.process else ""
    elif status.state == "stopped":
        text, reason = f"stopped {reason}", "the same command resumes it"
    elif status.state == "unknown" and not reason:
        text = "not running" if record.jobs else "not started"
    return {"kind": kind, "text": text, "reason": reason}


def _progress(record: RunRecord) -> dict[str, Any]:
    last = record.last_step
    share = None if not last else min(1.0, record.step / last)
    return {"step": f"{record.step:,}", "last": None if last is None else f"{last:,}", "share": share}


def _figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers at the top: what, the value, and small print."""
    log = record.log
    figures = []
    if (images := log.last("images")) is not None:
        epoch = log.last("epoch")
        figures.append(("images seen", f"{images:,.0f}", "" if epoch is None else f"{epoch:,.2f} epochs"))
    if (loss := log.last("loss")) is not None:
        validation = log.last("validation_loss")
        figures.append(("loss", f"{loss:.4g}", "" if validation is None else f"{validation:.4g} on held-out images"))
    rates = log.columns.get("images_per_second")
    if rates is not None and np.isfinite(rates.values).any():
        median = float(np.median(rates.values[np.isfinite(rates.values)]))
        figures.append(("images per second", three_digits(median), "median of the log"))
    seconds = sum(job.seconds or 0.0 for job in record.jobs)
    if seconds:
        figures.append(("time", duration(seconds), f"in {plural(len(record.jobs), 'job')}"))
    scored = [(first_score(file.result.scores), file.result) for file in record.scores.files if file.result.scores]
    distances = [(metric, result) for metric, result in scored if is_frechet(metric)]
    for metric, result in (distances or scored)[-1:]:
        floor = result.floor.get(metric)
        note = "" if floor is None else f"{_score_text(metric, floor)} for real images"
        figures.append((shown_name(metric), _score_text(metric, result.scores[metric]), note))
    return figures


def _grids_note(record: RunRecord) -> str:
    grids = record.grids
    notes = []
    left_out = grids.total - len(grids.grids) - grids.unreadable
    if left_out:
        notes.append(f"{len(grids.grids)} of {grids.total:,} grids are shown.")
    if grids.shrunk:
        notes.append("Large grids are shrunk and stored as JPEG; the files in samples/ are sharper.")
    if grids.unreadable:
        notes.append(f"{plural(grids.unreadable, 'file is', 'files are')} not a grid that can be read.")
    return " ".join(notes)


def _score_text(metric: str, value: float) -> str:
    """A score as people read it, in four digits, or as many as a small one needs."""
    value = shown_value(metric, value)
    return decimals(1)(value) if abs(value) >= 100 else f"{value:.4g}".replace("-", "−")


def _score_row(file: ScoreFile) -> dict[str, Any]:
    sampler = file.about.get("sampler")
    sampler = sampler if isinstance(sampler, dict) else {}
    floor, n = file.result.floor, file.about.get("n", "")
    return {
        "name": file.name,
        "protocol": file.protocol,
        "step": "" if file.step is None else f"{file.step:,}",
        "n": (f"{n:,}" if isinstance(n, int) else str(n))[:_LONGEST_WORD],
        "sampler": " ".join(str(sampler[key])[:_LONGEST_WORD] for key in ("kind", "steps") if key in sampler),
        "weights": str(file.about.get("weights", ""))[:_LONGEST_WORD],
        "scores": [
            (
                shown_name(metric),
                _score_text(metric, value),
                None if metric not in floor else _score_text(metric, floor[metric]),
            )
            for metric, value in file.result.scores.items()
        ],
    }


def _score_remarks(record: RunRecord) -> list[str]:
    """The remarks on the scores, those of the newest first."""
    experiment, state = record.config.experiment, record.state
    trained_on = [] if experiment is None else experiment.data.trained_on
    trained = TrainingData(None if state is None else state.fingerprint, trained_on)
    alike = {file.protocol: file.result.protocol for file in record.scores.files}  # one of each letter
    remarks = dict.fromkeys(r for protocol in reversed(alike.values()) for r in score_remarks(protocol, trained))
    return [remark[:_LONGEST_REASON] for remark in [*remarks][:_MOST_REMARKS]]


def _protocols(files: Sequence[ScoreFile]) -> list[tuple[str, str, str]]:
    """The letter of each protocol, and the newest file that follows it, with the protocol's text."""
    newest = {file.protocol: file for file in files}
    return [(letter, newest[letter].name, newest[letter].text) for letter in [*newest][-_MOST_PROTOCOLS:]]


def _data(record: RunRecord) -> list[tuple[str, str, str]]:
    """The accounting of the data: what, how many, and small print."""
    log, experiment, state = record.log, record.config.experiment, record.state
    rows = []
    images, epoch = log.last("images"), log.last("epoch")
    if images is not None:
        steps = f"in {plural(f'{record.step:,}', 'step')}"
        batch = "" if experiment is None else f", {plural(experiment.data.batch_size, 'image')} per step now"
        rows.append(("images seen", f"{images:,.0f}", steps + batch))
    if epoch:
        total = "" if images is None else f"of about {images / epoch:,.0f} images"
        rows.append(("epochs", f"{epoch:,.2f}", total))
    bad = int(log.last("bad") or 0)
    limit = "" if experiment is None else f"data.max_bad_samples allows {experiment.data.max_bad_samples:,}"
    rows.append(("samples that could not be read", f"{bad:,}", limit))
    skipped = int(log.last("skipped") or 0)
    advice = "a loss or gradient that was not finite changes no weight"
    rows.append(("updates left out", f"{skipped:,}", advice))
    waited = log.columns.get("data_wait")
    if waited is not None and np.isfinite(waited.values).any():
        mean = float(np.mean(waited.values[np.isfinite(waited.values)]))
        rows.append(("waiting for data", f"{100 * mean:.1f}%", "of the training time, in the mean of the log"))
    if experiment is not None:
        rows.append(("training shards", _text(experiment.data.trained_on), ""))
        if experiment.data.test is not None:
            rows.append(("held-out shards", _text(experiment.data.test), ""))
    if state is not None:
        rows.append(("fingerprint of the data", state.fingerprint[:16], "of every shard, label and key"))
    kept = ", ".join(f"{step:,}" for step in record.checkpoints[:8]) or "none yet"
    more = len(record.checkpoints) - 8
    rows.append(("checkpoints at step", kept, f"and {more} more" if more > 0 else ""))
    if record.damaged:
        rows.append(("damaged checkpoints", f"{len(record.damaged)}", ", ".join(record.damaged[:8])))
    return rows


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=list, ensure_ascii=False)
