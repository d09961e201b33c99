"""The files in launch/ for accelerate and Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
import torch.distributed.run as torchrun
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env
from torch.distributed.launcher.api import LaunchConfig

from tests.support.commands import CONFIG, HOME, TINY, metrics, seen

LAUNCH = HOME / "launch"
SMALL = [*TINY, "data.resolution=8", "data.workers=0", "sample.every=0", "eval.every=0"]


class Launched(NamedTuple):
    """The config that `accelerate launch` hands to torchrun, and the environment that it adds."""

    config: LaunchConfig
    env: dict[str, str]


def launched(name: str, *words: str) -> Launched:
    command = ["--config_file", str(LAUNCH / name), "--main_process_port", "0", *words, "-m", "diffpipe", "train", "x"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    env = prepare_multi_gpu_env(args)
    script = ["--training_script", args.training_script, "--training_script_args", args.training_script_args]
    config, _, _ = torchrun.config_from_args(_filter_args(args, torchrun.get_args_parser(), script))
    return Launched(config, {name: value for name, value in env.items() if os.environ.get(name) != value})


CONFIGS = sorted({*LAUNCH.glob("*.yaml")} - {LAUNCH / "kubernetes.yaml"})  # of accelerate


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_takes_every_config_and_leaves_precision_to_diffpipe(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    assert (
        launched(path.name, "--machine_rank", "0", "--main_process_ip", "127.0.0.1").env["ACCELERATE_MIXED_PRECISION"]
        == "no"
    )


@pytest.mark.parametrize(
    ("name", "words", "nodes", "processes"),
    [
        ("cpu.yaml", ["--num_processes", "3"], 1, 3),
        ("ddp.yaml", [], 1, 8),
        ("fsdp.yaml", [], 1, 8),
        ("multinode.yaml", ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"], 2, 8),
        ("multinode.yaml", ["--num_machines", "4", "--num_processes", "16", "--machine_rank", "3"], 4, 4),
    ],
)
def test_a_node_starts_its_share_of_the_processes(name: str, words: list[str], nodes: int, processes: int) -> None:
    config = launched(name, *words).config
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (nodes, nodes, processes)
    assert config.rdzv_backend == "static"
    assert (config.max_restarts, launched(name, *words, "--max_restarts", "2").config.max_restarts) == (0, 2)


def test_cpu_hides_the_gpus_from_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", launched("cpu.yaml").env["CUDA_VISIBLE_DEVICES"])
    assert torch.cuda._parse_visible_devices() == []


def test_only_fsdp_asks_for_sharding() -> None:
    asked = {path.name: launched(path.name, "--machine_rank", "0").env for path in CONFIGS}
    assert asked["fsdp.yaml"]["ACCELERATE_USE_FSDP"] == "true"
    assert asked["fsdp.yaml"]["FSDP_VERSION"] == "2"
    assert [name for name, env in asked.items() if "ACCELERATE_USE_FSDP" in env] == ["fsdp.yaml"]


def test_fsdp_without_a_gpu_shards_over_processes_on_cpus(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "fsdp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "tests.integration.held_tensors"]
    words = ["train", str(CONFIG), f"run.dir={tmp_path}", *SMALL, "train.steps=2", "train.record_samples=true"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*launch, *words], cwd=HOME, env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert ended.returncode == 0, ended.stderr
    held = [float(line.split()[1]) for line in ended.stdout.splitlines() if line.startswith("held ")]
    assert len(held) == 2
    assert max(held) < 0.55
    assert {len(positions) for positions in seen(tmp_path).values()} == {8}  # of both ranks


class Slurm:
    """Programs that stand in for Slurm's, each node a process on this machine, and what they were asked."""

    JOB = "4711"

    def __init__(self, folder: Path):
        self._folder = folder
        self._jobs: list[psutil.Popen] = []
        folder.mkdir()
        self._write("scontrol", f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {folder}/asked; fi')
        nodes = 'for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & tasks+=($!); done'
        options = 'while [ "${1:0:1}" = - ]; do shift; done; tasks=(); status=0'
        wait = f'echo "${{tasks[@]}}" > {folder}/tasks; for task in "${{tasks[@]}}"; do wait "$task" || status=$?; done'
        self._write("srun", f"{options}; {nodes}; {wait}; exit $status")

    def replace_accelerate(self, script: str) -> None:
        self._write("accelerate", script)

    def _write(self, program: str, script: str) -> None:
        (self._folder / program).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (self._folder / program).chmod(0o755)

    def start(self, nodes: int, *words: object) -> psutil.Popen:
        """The batch script, as a job on that many nodes with a process each."""
        path = os.pathsep.join([str(self._folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        slurm = {"SLURM_JOB_ID": self.JOB, "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": str(nodes)}
        self._jobs.append(
            psutil.Popen(
                ["bash", str(LAUNCH / "slurm.sbatch"), *map(str, words)],
                cwd=HOME,
                env=os.environ | slurm | {"OMP_NUM_THREADS": "1", "PATH": path, "PROCESSES": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self._jobs[-1]

    def end(self) -> None:
        """Kill what a test that failed has left running."""
        for job in self._jobs:
            if job.is_running():
                for process in (*job.children(recursive=True), job):
                    process.kill()
            job.wait()

    def signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Signal the job as Slurm does, which is its tasks alone; all processes that it then had."""
        tasks = [psutil.Process(int(pid)) for pid in (self._folder / "tasks").read_text().split()]
        started = [process for task in tasks for process in task.children(recursive=True)]
        for task in tasks:
            task.send_signal(number)
        return tasks + started

    @property
    def asked(self) -> str:
        asked = self._folder / "asked"
        return asked.read_text() if asked.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path / "slurm")
    yield slurm
    slurm.end()


def test_a_slurm_job_whose_time_is_up_saves_is_requeued_and_goes_on_with_other_nodes(
    slurm: Slurm, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = slurm.start(2, run, CONFIG, *SMALL, "train.steps=100000")
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or max(metrics(run), default=0) < 3:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)
    processes = slurm.signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert slurm.asked == f"requeue {slurm.JOB}\n", said
    assert len(processes) == 4, "two launchers with a process each"
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, said
    step = json.loads((run / ".interrupted").read_text())["step"]
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]

    # Queued again it would be the same words; fewer steps, for the sake of the test's time.
    job = slurm.start(1, run, CONFIG, *SMALL, f"train.steps={step + 2}")
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert f"resuming from {run}/checkpoints/step-{step:08d}" in said
    assert max(metrics(run)) == step + 2
    assert not (run / ".interrupted").exists()
    assert slurm.asked == f"requeue {slurm.JOB}\n", "it was queued once more"


@pytest.mark.parametrize(("signal_name", "asked"), [("SIGUSR1", "requeue 4711\n"), ("SIGTERM", "")])
def test_slurm_is_asked_to_queue_a_job_again_only_when_its_time_was_up(
    slurm: Slurm, tmp_path: Path, signal_name: str, asked: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    why = json.dumps({"signal": signal_name, "step": 1})
    slurm.replace_accelerate(f"echo '{why}' > {run}/.interrupted; exit 1")
    job = slurm.start(1, run, CONFIG)
    job.communicate(timeout=120)
    assert slurm.asked == asked
    assert job.returncode == (0 if asked else 1)


def test_a_slurm_job_that_fails_is_not_requeued_for_an_interruption_of_long_ago(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".interrupted").write_text('{"signal": "SIGUSR1", "step": 1}')
    slurm.replace_accelerate("exit 3")
    job = slurm.start(2, run, CONFIG)
    job.communicate(timeout=120)
    assert job.returncode == 3
    assert slurm.asked == ""
