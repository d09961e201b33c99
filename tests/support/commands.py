"""The commands in processes of their own, alone and several as one job, and what to read off their runs.

They are forks of a server that has imported what they need (server.py); with `real=True` they are what a user types:
`python -m diffpipe`, and for several processes `accelerate launch`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffpipe.config.defaults import read_merged
from diffpipe.experiment.config import Experiment
from tests.support.checkpoint_tensors import consolidated
from tests.support.fork_server import Server

HOME = Path(__file__).parents[2]
SHARDS = HOME / "configs" / "fashion_mnist" / "shards"
CONFIG = HOME / "configs" / "fashion_mnist" / "ddpm.yaml"
_UNET = ["stage.network.channels=8", "stage.network.channel_mult=[1,2]", "stage.network.attention=[]"]
_UNET += ["stage.network.groups=4", "stage.network.heads=1", "stage.network.head_channels=null"]
_ADM = ["stage.network.channels=8", "stage.network.channel_mult=[1,2]", "stage.network.blocks=1"]
_ADM += ["stage.network.attention=[]", "stage.network.groups=4", "stage.network.head_channels=8"]
_TRANSFORMER = ["stage.network.width=16", "stage.network.depth=2", "stage.network.heads=2"]
_EDM2 = [word for word in _ADM if "groups" not in word]
_DENOISER = {"unet": _UNET, "adm": _ADM, "edm2": _EDM2, "dit": _TRANSFORMER}
_DISCRIMINATOR = ["stage.discriminator.channels=8", "stage.discriminator.channel_mult=[1,2]"]
_CODER = ["stage.network.channels=8", "stage.network.channel_mult=[1,2]", "stage.network.groups=4"]
TINY_STAGE = {
    "adversarial": [*_UNET, "stage.teacher=null"],
    "autoencoder": _CODER,
    "autoregressive": [*_TRANSFORMER, "stage.tokens.embedding=4"],
    "ddpm": [*_UNET, "stage.sampler.steps=3"],
    "glow": ["stage.network.levels=1", "stage.network.steps=2", "stage.network.hidden=8"],
    "gan": [*_DISCRIMINATOR, "stage.generator.channels=8", "stage.generator.channel_mult=[1,2]"],
    "tarflow": ["stage.network.width=16", "stage.network.blocks=2", "stage.network.layers=1"],
    "vq": [*_CODER, "stage.quantizer.codes=16", "eval.reconstruction=0"],
    "vae": [*_CODER, "eval.reconstruction=0"],
}


def tiny_stage(stage: Mapping[str, Any]) -> list[str]:
    """Overrides that make a stage's networks tiny. Those of a diffusion and a flow are by the kind of the network."""
    kind = stage["kind"]
    if kind == "autoregressive" and stage["tokens"]["kind"] == "codes":
        return _TRANSFORMER
    if kind == "ddpm":
        return [*_DENOISER[stage["network"].get("kind", "unet")], "stage.sampler.steps=3"]
    return TINY_STAGE[stage["network"]["kind"] if kind == "flow" else kind]


TINY_RUN = ["data.batch_size=8", "optimizer.decay=constant", "train.log_every=1"]
TINY = [*TINY_STAGE["ddpm"], *TINY_RUN]


def command(*words: object, processes: int = 0) -> list[str]:
    """`diffpipe …` as argument list: by itself, or with that many processes under accelerate launch."""
    start = [sys.executable, "-m", "diffpipe"]
    if processes:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch/cpu.yaml")]
        start = [*launcher, "--num_processes", str(processes), "--main_process_port", "0", "-m", "diffpipe"]
    return [*start, *map(str, words)]


def diffpipe(
    *words: object,
    processes: int = 0,
    real: bool = False,
    timeout: float = 600,
    module: str = "diffpipe",
    env: Mapping[str, str] | None = None,
    cwd: Path = HOME,
) -> subprocess.CompletedProcess[str]:
    """Run it, from the repository's root by default, one thread a process, and return what it said.

    module: another one that takes a command's words. env: laid over this process's environment.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    started = command(*words, processes=processes)
    if real:
        return subprocess.run(started, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = server().start([*map(str, words)], cwd, env, out, err, processes, module).wait(timeout)
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(started, code, out.read(), err.read())


@functools.cache
def server() -> Server:
    return Server(HOME)


def succeeds(*words: object, processes: int = 0, real: bool = False) -> str:
    """Run it, require exit status 0, and return all that it printed: stdout, then stderr."""
    result = diffpipe(*words, processes=processes, real=real)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def train(run_dir: Path, *overrides: str, processes: int = 0, config: Path = CONFIG, real: bool = False) -> str:
    tiny = tiny_stage(read_merged(Experiment, config).tree["stage"])
    words = ["train", config, f"run.dir={run_dir}", *tiny, *TINY_RUN, *overrides]
    return succeeds(*words, processes=processes, real=real)


def refused(*words: object, processes: int = 0, real: bool = False) -> str:
    """The one line of a command that must fail; a launcher adds its own traceback, and its own exit status."""
    result = diffpipe(*words, processes=processes, real=real)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith(f"diffpipe {words[0]}: error: ")]
    assert len(lines) == 1, result.stderr
    if not processes:
        assert result.returncode == 2
        assert result.stderr.splitlines() == lines
    return lines[0]


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, whole, read without the package or torch."""
    return consolidated(checkpoint)


def metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line for line in map(json.loads, lines)}


def seen(run_dir: Path) -> dict[int, dict[int, str]]:
    """Step → position → key over all ranks and all times that the step was trained. Twice must mean the same."""
    found: dict[int, dict[int, str]] = {}
    for path in (run_dir / "seen").glob("rank-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            for position, key in zip(line["positions"], line["keys"], strict=True):
                assert found.setdefault(line["step"], {}).setdefault(position, key) == key
    return found
