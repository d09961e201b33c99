"""A small comparison of three runs."""

from __future__ import annotations

from typing import Any

from diffpipe.report.comparison_table import Comparison
from diffpipe.report.run_summary import RunSummary

FD, RECALL = "fd_efficientnet_lite0", "recall_efficientnet_lite0"
METRICS = {name: {"extractor": "efficientnet_lite0"} for name in (FD, RECALL)}


def summary(name: str, **known: Any) -> RunSummary:
    about: dict[str, Any] = {"checkpoint": "c" * 64, "step": 10, "images_seen": 57600, "weights": "ema", "sampler": {}}
    size: dict[str, Any] = {"generating": 236_000, "all": 2_740_000}
    return RunSummary(name=name, run=f"runs/{name}", stage="gan", conditional=True, parameters=size, **about | known)


def bits(value: float, kind: str, unit: str = "bits/dim") -> dict[str, Any]:
    return {"value": value, "standard_error": 0.01, "n": 20, "unit": unit, "kind": kind}


def comparison() -> Comparison:
    protocol = {
        "n": 60,
        "likelihood_n": 20,
        "metrics": METRICS,
        "reference": {"n": 2000},
        "sampling": {"batch": 50, "precision": "float32", "device": "CPU", "threads": 1, "processes": 2},
    }
    rows = [
        summary("a <b>", scores={FD: 324.06, RECALL: 0.5}, bits_per_dim=bits(3.25, "bound"), training=None),
        summary("two", scores={FD: 41.04, RECALL: 0.25}, bits_per_dim=bits(1.5, "exact", "bits/dim of noised images")),
        summary(
            "coder", reconstruction={"value": 0.01234, "unit": "mse", "n": 20}, missing={"scores": "makes none & co"}
        ),
    ]
    return Comparison(rows, {FD: 12.5, RECALL: 0.75}, protocol)
