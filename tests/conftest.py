"""Shapes in signatures are checked while tests run: jaxtyping's hook, before anything of diffpipe is imported."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

PARTS = (
    "rng",
    "errors",
    "interfaces",
    "data",
    "nn",
    "diffusion",
    "stages",
    "train",
    "metrics",
    "experiment",
    "evaluation",
    "report",
    "verify",
    "api",
    "cli",
)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each on two cores are ten times slower
install_import_hook([f"diffpipe.{part}" for part in PARTS], "beartype.beartype")
