"""Every command of the README runs, with a small model and few steps, and in its order."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffpipe.cli import compare
from diffpipe.config.load import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.metrics.evaluate import parse_metric
from tests.support.archives import cifar_pickles, write_cifar
from tests.support.commands import HOME, TINY, TINY_RUN, TINY_STAGE, diffpipe

SMALL = [*TINY_RUN, "data.resolution=8", "data.workers=0", "train.steps=2", "sample.every=0"]
INSTALLING = (
    "python3 -m venv",
    "pip install",
    "./launch/",
    "curl",
)  # the suite runs in what these make; the demo has its own test


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (HOME / "README.md").read_text(), flags=re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def shortened(line: str) -> str:
    """The command with little to do: CPUs for GPUs, a tiny network, a handful of images, weights that are at hand."""
    line = line.replace("--config_file launch/ddp.yaml", "--config_file launch/cpu.yaml --num_processes 2")
    line = line.replace("--num_processes 2", "--num_processes 2 --main_process_port 0")
    if " train " in line:
        (config,) = re.findall(r"configs/\S+\.yaml", line)
        words = [*TINY_STAGE[yaml.safe_load((HOME / config).read_text())["stage"]["kind"]], *SMALL]
        return line + "".join(f" '{word}'" for word in words)
    if " verify-resume " in line:  # at other world sizes: its own test, whose processes start sooner
        words = [*TINY, "data.resolution=8", "data.workers=0"]
        return line.replace(
            "--steps 12 --worlds 1,2,4", " ".join(f"'{word}'" for word in words) + " --steps 6 --worlds 1"
        )
    if " encode " in line:
        return line.replace("shards/train", "shards/test")
    if " attribute " in line or " latent-map " in line:
        return line + " --n 20"
    if " interpolate " in line:
        return line + " --n 2 --columns 3"
    if " classify " in line:
        return line.replace("--n 8 --steps 10", "--n 4 --steps 2")
    if " compare " in line:
        return line.replace("vlb_steps=60", "vlb_steps=3") + " --n 6 --nll-n 4 --metrics fd_efficientnet_lite0"
    if " nll " in line:
        return line.replace("--n 100 --steps 60", "--n 4 --steps 3")
    if " eval " in line or "fid.py" in line:
        return line + " --n 6 --metrics fd_efficientnet_lite0"
    return line


@pytest.mark.timeout(600)  # two dozen commands, one after the other
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    for name in ("configs", "launch", "eval"):
        (tmp_path / name).symlink_to(HOME / name)
    write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles())  # what curl would fetch, and smaller
    for i in range(12):
        folder = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    ran = 0
    for line in commands():
        if line.startswith(INSTALLING):
            continue
        words = shlex.split(shortened(line).replace("~", str(tmp_path)))
        if ran and words[0] == "diffpipe":  # that the shell finds it, the first one shows
            result = diffpipe(*words[1:], cwd=tmp_path)
        else:
            result = subprocess.run(
                words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=200
            )
        assert result.returncode == 0, f"{words}\n{result.stderr}"
        ran += 1
    assert ran >= 10
    assert (tmp_path / "samples" / "photos" / "grid.png").exists()
    assert (tmp_path / "weights" / "photos" / "denoiser.safetensors").exists()


def test_the_readme_names_every_way_to_launch() -> None:
    told = (HOME / "README.md").read_text()
    for path in (HOME / "launch").iterdir():
        assert path.name in told or path.name == "setup.sh", path


def test_the_demo_trains_samples_scores_and_says_where_the_grid_is(tmp_path: Path) -> None:
    # In a checkout of its own, with this installation as its .venv; the script is the user's, word for word.
    for name in ("configs", "launch", "diffpipe", "pyproject.toml", "README.md", "LICENSE"):
        source = HOME / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "accelerate").symlink_to(Path(sys.executable).parent / "accelerate")
    (venv / ".installed").touch()
    env = os.environ | {"OMP_NUM_THREADS": "1", "RUN": "runs/x"}
    result = subprocess.run(
        ["./launch/demo.sh", *TINY, "train.steps=2"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    grid = result.stdout.splitlines()[-1].partition(": ")[2]
    with Image.open(tmp_path / grid) as image:
        assert image.size == (10 * 30 * 2, 10 * 30 * 2)
    assert re.search(r"fd_efficientnet_lite0 +[\d.]+ +\(real images against the same: [\d.]+\)", result.stderr)
    assert len(list((tmp_path / "runs/x/scores").iterdir())) == 1


def test_the_families_script_compares_what_it_trains_and_trains_first_what_others_need(tmp_path: Path) -> None:
    shutil.copytree(HOME / "launch", tmp_path / "launch")
    shutil.copy(HOME / "pyproject.toml", tmp_path)
    recorder = tmp_path / ".venv" / "bin" / "diffpipe"
    recorder.parent.mkdir(parents=True)
    (tmp_path / ".venv" / ".installed").touch()
    recorder.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:], file=open('asked', 'a'))\n")
    recorder.chmod(0o755)
    subprocess.run(["./launch/families.sh"], cwd=tmp_path, check=True, capture_output=True)
    *trained, (command, *words) = map(ast.literal_eval, (tmp_path / "asked").read_text().splitlines())
    runs: list[str] = []
    for train, path in trained:
        assert train == "train"
        config = load_config(Experiment, HOME / path)
        others = [getattr(config.stage, key, None) for key in ("teacher", "codec")]
        needed = [run for run in (getattr(other, "run", None) for other in others) if run]
        assert set(needed) <= set(runs), f"{path} starts from what is not trained yet"
        runs.append(config.run.dir)
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    assert command == "compare"
    args = parser.parse_args(words)
    compared = [str(entry.path) for entry in compare.parse_entries(args.runs)]
    assert set(compared) == set(runs) - {"runs/fashion_mnist/latent_vae"}
    assert (HOME / args.reference / "index.safetensors").exists()
    assert all(parse_metric(name) for name in args.metrics.split(","))
