"""Shapes in signatures are checked while tests run: jaxtyping's hook, before anything of diffpipe is imported."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

PARTS = (
    "rng",
    "errors",
    "precision",
    "interfaces",
    "data",
    "nn",
    "diffusion",
    "coding",
    "stages",
    "train",
    "metrics",
    "experiment",
    "evaluation",
    "report",
    "verify",
    "api",
    "loaded_latents",
    "loaded_run",
    "loaded_samples",
    "cli",
)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each on two cores are ten times slower
# A suite that a script starts in the background ignores SIGINT, and under nohup SIGHUP: so would every command that
# tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
install_import_hook([f"diffpipe.{part}" for part in PARTS], "beartype.beartype")
hypothesis.settings.register_profile("diffpipe", deadline=None)  # how long an example takes is up to the machine
hypothesis.settings.load_profile("diffpipe")

JOBS = {"distributed", "faults", "integration"}  # folders whose tests start several processes or whole commands


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in the folders of JOBS is slow. The fast tier, `-m "not slow"`, is the rest of the unit tests."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in JOBS:
            item.add_marker("slow")
