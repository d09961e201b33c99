"""Jobs of some processes with some threads each, as a user starts them, and how much of the machine they find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]


def start(module: str, *words: object, processes: int, threads: int) -> str:
    """Run `python -m MODULE WORDS…`, several processes under accelerate launch; what it wrote to stdout.

    Its stderr goes where ours goes. Raises SystemExit where it fails.
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch" / "cpu.yaml")]
        command += ["--num_processes", str(processes), "--main_process_port", "0"]
    command += ["-m", module, *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command, cwd=HOME, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {ended.returncode}")
    return ended.stdout


def machine() -> str:
    """How many processors there are, and how many other processes wanted one in the last minute."""
    return f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} in the minute before"
