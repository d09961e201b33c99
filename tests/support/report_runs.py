"""Run directories as training leaves them, without any training: logs, events, grids, scores, a checkpoint's state."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffpipe.config import dump_yaml, load_config
from diffpipe.experiment.config import Experiment
from diffpipe.metrics.protocol import Result, write
from tests.support.commands import CONFIG
from tests.support.run_states import run_state

START = 1_800_000_000.0  # seconds since 1970


def log_line(step: int, **values: Any) -> dict[str, Any]:
    """A line of a diffusion's metrics.jsonl, of 16 images per step."""
    decay = math.exp(-step / 150)
    quarters = {f"loss_q{i}": 0.05 * i + decay for i in (1, 2, 3, 4)}
    line = {
        "step": step,
        "images": 16 * step,
        "loss": 0.03 + decay,
        **quarters,
        "grad_norm": 0.2 + 3 * decay,
        "lr": 1e-3 * min(1.0, step / 100),
        "images_per_second": 100.0 + step % 7,
        "data_wait": 0.02,
        "epoch": 16 * step / 10_000,
        "time": START + step / 5,
    }
    return line | values


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_grid(home: Path, step: int, size: tuple[int, int] = (240, 120), *, noise: bool = False) -> Path:
    """A grid of one grey, which tells its step, or of noise, which no PNG makes small."""
    path = home / "samples" / f"step-{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    pixels = np.full((size[1], size[0], 3), step % 251, dtype=np.uint8)
    if noise:
        pixels = np.random.default_rng(step).integers(0, 256, pixels.shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_score(home: Path, step: int, value: float, *, sampler: str = "ddim", **generated: Any) -> Path:
    """A score file of `eval` after `step`, with a protocol as short as can be."""
    metric = {"extractor": "efficientnet_lite0", "distance": "frechet"}
    about = {"n": 100, "seed": 0, "step": step, "images_seen": 16 * step, "checkpoint": f"{step:064d}"}
    about |= {"weights": "ema", "sampler": {"kind": sampler, "steps": 20}, **generated}
    reference = {"n": 100, "fingerprint": "f" * 64}
    protocol = {"metrics": {"fd_efficientnet_lite0": metric}, "generated": about, "reference": reference}
    path = home / "scores" / f"train-step-{step:08d}-n100-{sampler}.json"
    write(Result({"fd_efficientnet_lite0": value}, {"fd_efficientnet_lite0": 120.0}, protocol), path)
    return path


def write_state(home: Path, step: int, **fields: Any) -> None:
    """A checkpoint's state.json, and nothing else of the checkpoint."""
    folder = home / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    state = run_state(0, **fields).model_dump(mode="json")  # a stranger's may have a step that no state takes
    (folder / "state.json").write_text(json.dumps(state | {"step": step, "position": 8 * step}))


def write_config(home: Path, *words: str) -> Experiment:
    experiment = load_config(Experiment, CONFIG, [f"run.dir={home}", "train.minutes=null", *words])
    (home / "config.yaml").write_text(dump_yaml(experiment))
    return experiment


def finished_run(home: Path, steps: int = 1000) -> Path:
    """A run of three jobs: stopped by a signal, killed, and finished, with all that a report shows."""
    home.mkdir(parents=True)
    write_config(home, f"train.steps={steps}", "data.max_bad_samples=5")
    third = steps // 3
    lines = [log_line(step) for step in range(10, steps + 1, 10)]
    for line in lines:
        if line["step"] > third:
            line["bad"] = 2
        if line["step"] > 2 * third:
            line["skipped"] = 1
        if line["step"] % 100 == 0:
            line["validation_loss"] = 1.1 * line["loss"]
    write_lines(home / "metrics.jsonl", lines)
    job = {"processes": 2, "host": "node-1"}
    write_lines(
        home / "events.jsonl",
        [
            {"step": 0, "event": "start", "time": START, **job},
            {"step": third, "event": "stop", "time": START + third / 5, "signal": "SIGTERM"},
            {"step": third, "event": "resume", "time": START + third, **job},
            {"step": 2 * third - 20, "event": "resume", "time": START + 2 * third, **job},
            {"step": steps, "event": "finish", "time": START + 3 * third},
        ],
    )
    for step in range(steps // 10, steps + 1, steps // 10):
        write_grid(home, step)
    write_score(home, steps // 2, 300.0)
    write_score(home, steps, 250.0)
    write_score(home, steps, 400.0, sampler="heun")
    write_state(home, steps, bad_samples=["train-000.tar: key7: not an image", "train-001.tar: key9: truncated"])
    return home
