"""A sweep through the command, and the Slurm array of launch/README.md in bash, with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.commands import CONFIG, HOME, TINY, diffpipe, metrics, refused, succeeds

SBATCH = """
while [ $# -gt 0 ]; do
  case "$1" in --array=1-*) tasks="${1#--array=1-}" ;; --wrap) script="$2"; shift ;; esac
  shift
done
for task in $(seq "$tasks"); do SLURM_ARRAY_TASK_ID=$task sh -c "$script"; done
"""
SMALL = [*TINY, "data.resolution=8", "data.workers=0", "sample.every=0", "train.steps=1"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the configs, and with programs that stand in for Slurm's and for diffpipe on a small network."""
    (tmp_path / "configs").symlink_to(HOME / "configs")
    (tmp_path / "bin").mkdir()
    programs = {
        "sbatch": SBATCH,
        "srun": 'exec "$@"',
        "diffpipe": f'exec {sys.executable} -m diffpipe "$@" {shlex.join(SMALL)}',
    }
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_the_array_of_the_page_trains_each_combination(home: Path) -> None:
    page = (HOME / "launch" / "README.md").read_text()
    section = page.partition("### A sweep as a Slurm array")[2]
    script = re.findall(r"^```sh\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)[0]
    assert 'sed -n "${SLURM_ARRAY_TASK_ID}p"' in script
    env = os.environ | {"PATH": f"{home}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=home, env=env, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "note: 4 commands of a sweep; nothing was trained" in ended.stderr
    runs = sorted((home / "runs" / "sweep").iterdir())
    assert [run.name for run in runs] == [f"lr={lr},seed={seed}" for lr in ("1e-3", "5e-4") for seed in (0, 1)]
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert run.name == f"lr={'1e-3' if config['optimizer']['lr'] == 1e-3 else '5e-4'},seed={config['seed']}"
        assert sorted(metrics(run)) == [1]


def test_the_commands_are_printed_once_whatever_the_number_of_processes() -> None:
    result = diffpipe("train", CONFIG, "optimizer.lr=1e-4,2e-4", "run.dir=runs/it's", "--sweep", "seed=3", processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"diffpipe train {CONFIG} optimizer.lr={lr} seed=3 {shlex.quote(f'run.dir=runs/it{chr(39)}s/lr={lr},seed=3')}"
        for lr in ("1e-4", "2e-4")
    ]


def test_the_commands_are_json_where_that_is_wanted() -> None:
    words = ["train", CONFIG, "seed=1,2", "run.dir=runs/a"]
    document = json.loads(succeeds(*words, "--json", "--quiet"))
    assert document["commands"] == [
        ["diffpipe", "train", str(CONFIG), f"seed={seed}", f"run.dir=runs/a/seed={seed}"] for seed in (1, 2)
    ]


def test_a_sweep_with_a_wrong_value_prints_no_command() -> None:
    assert "error: optimizer.lr is 'fast'; give a number > 0" in refused("train", CONFIG, "optimizer.lr=1e-4,fast")
    assert "error: optimizer.betas is " in refused("train", CONFIG, "optimizer.betas=0.9,0.95")
