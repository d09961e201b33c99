"""Jobs of several processes and threads, started as a user would, and the load of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]


def run_module(module: str, *words: object, processes: int, threads: int) -> str:
    """The stdout of `python -m MODULE WORDS…`, under accelerate launch for several processes.

    Its stderr is inherited. Raises SystemExit where it fails.
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch" / "cpu.yaml")]
        command += ["--num_processes", str(processes), "--main_process_port", "0"]
    command += ["-m", module, *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=HOME, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {result.returncode}")
    return result.stdout


def machine() -> str:
    """The number of cores and the load average of the last minute."""
    return f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} in the last minute"
