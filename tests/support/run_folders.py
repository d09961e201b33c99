"""Run directories without a training: the files that a run writes, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffpipe.config import dump_yaml, load_config
from diffpipe.experiment.config import Experiment
from diffpipe.run_folder import MANIFEST, STATE, step_name
from diffpipe.train.checkpoint.format import Manifest, describe
from diffpipe.train.checkpoint.state import FORMAT

_CONFIG = Path(__file__).parents[2] / "configs" / "fashion_mnist" / "ddpm.yaml"


def run_folder(path: Path, *overrides: str, step: int = 5, events: list[dict[str, Any]] | None = None) -> Path:
    """A run of the demo's config that has logged its steps up to `step`, with these lines in events.jsonl."""
    words = [f"run.dir={path}", "train.steps=9", "train.minutes=null", *overrides]
    checkpoint(path, step)
    (path / "config.yaml").write_text(dump_yaml(load_config(Experiment, _CONFIG, words)))
    lines = [{"step": k, "images": 8 * k, "loss": 1 / k, "images_per_second": 40.0} for k in range(1, step + 1)]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (path / ".lock").write_text("process 4711 on node7\n")
    if events is not None:
        (path / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in events))
    return path


def checkpoint(run: Path, step: int) -> Path:
    """A checkpoint without tensors that agrees with its manifest."""
    path = run / "checkpoints" / step_name(step)
    path.mkdir(parents=True)
    (path / STATE).write_text(json.dumps({"step": step}))
    manifest = Manifest(format=FORMAT, step=step, files={STATE: describe(path / STATE)})
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path
