"""Two hosts train one run. The network between them is cut: both jobs end by themselves, and both resume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import CONFIG, HOME, TINY, metrics, seen, tensors, train
from tests.support.network_hosts import INTERFACE, Hosts, refusal

STEPS, EVERY = 72, 8
TIMEOUT = 20
SETTINGS = ["data.resolution=8", "data.workers=0", "sample.every=0", "eval.every=0", "train.record_samples=true"]
SETTINGS += [f"train.steps={STEPS}", f"checkpoint.every={EVERY}", f"train.timeout={TIMEOUT}"]
# A save beside training has a low priority: under load its collectives would reach the timeout.
SETTINGS += ["checkpoint.async=false"]


def start(hosts: Hosts, run: Path) -> list[subprocess.Popen[bytes]]:
    """The command of launch/multinode.yaml on both hosts. Their output goes to files beside the run."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch/multinode.yaml")]
    launch += ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", hosts.address(0)]
    launch += ["--main_process_port", "29500"]
    words = ["-m", "diffpipe", "train", str(CONFIG), f"run.dir={run}", *TINY, *SETTINGS]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
    return [
        hosts.start(host, [*launch, "--machine_rank", str(host), *words], said=log_file(run, host), cwd=HOME, env=env)
        for host in (0, 1)
    ]


def log_file(run: Path, host: int) -> Path:
    return run.with_name(f"host-{host}")


def until_step(run: Path, step: int, jobs: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 300
    metrics_log = run / "metrics.jsonl"
    while not metrics_log.exists() or metrics_log.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline, "the step was never reached"
        assert all(job.poll() is None for job in jobs), log_file(run, 0).read_text() + log_file(run, 1).read_text()
        time.sleep(0.01)


def test_a_run_resumes_exactly_after_the_network_between_its_hosts_was_cut(tmp_path: Path) -> None:
    if (why := refusal()) is not None:
        pytest.skip(why)
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    with Hosts() as hosts:
        jobs = start(hosts, run)
        until_step(run, 2 * EVERY + 1, jobs)
        hosts.unplug(1)
        cut = time.monotonic()
        # Each host loses the other. The launcher may take longer than the collective's timeout.
        statuses = [job.wait(timeout=TIMEOUT + 120) for job in jobs]
        assert all(statuses), f"{statuses} after {time.monotonic() - cut:.0f} s"
        assert not hosts.running(0), "host 0 still runs something"
        assert not hosts.running(1), "host 1 still runs something"
        reached = max(metrics(run))
        assert reached < STEPS, "the run ended before the network was cut"
        saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        full = reached // EVERY * EVERY
        assert saved[-1] in {f"step-{full:08d}", f"step-{full - EVERY:08d}"}, "more than the save in flight is lost"

        hosts.plug(1)
        assert [job.wait(timeout=90) for job in start(hosts, run)] == [0, 0], log_file(run, 0).read_text()
    log = log_file(run, 0).read_text()
    assert f"resuming from {run}/checkpoints/{saved[-1]}" in log
    assert "damaged" not in log

    train(uninterrupted, *SETTINGS, processes=2)
    last = f"checkpoints/step-{STEPS:08d}"
    expected, actual = tensors(uninterrupted / last), tensors(run / last)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].tobytes() == tensor.tobytes(), f"{name} differs after the cut at step {reached}"
    assert seen(run) == seen(uninterrupted)
    assert sorted(metrics(run)) == list(range(1, STEPS + 1))
