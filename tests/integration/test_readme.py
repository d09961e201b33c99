"""Every command block of the READMEs runs, with small models and few steps. Their links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffpipe.config.defaults import read_merged
from diffpipe.config.load import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import ImageShape
from diffpipe.metrics.names import parse_metric
from diffpipe.report.comparison_rows import ComparisonRow, comparison_rows
from diffpipe.resolution import square
from tests.support.archives import cifar_pickles, write_cifar
from tests.support.commands import HOME, TINY, TINY_RUN, diffpipe, tiny_stage

PACKED = "diffpipe pack ~/photos shards/photos --resolution 64"
HELD_OUT = "diffpipe pack ~/held_out shards/held_out --resolution 64"
TRAIN = "diffpipe train configs/own_images/ddpm.yaml data.train=shards/photos run.dir=runs/"
BEFORE = {  # the commands that a page takes for granted; its first lines name them
    "README.md": [],
    "configs/README.md": [],
    "launch/README.md": [PACKED],
    "eval/README.md": [PACKED, HELD_OUT, f"{TRAIN}photos", f"{TRAIN}by_class data.labels=true stage.conditional=true"],
}
MADE = {  # what some of them have to leave
    "README.md": ["samples/photos/grid.png", "runs/photos/scores"],
    "configs/README.md": ["shards/split/test/index.safetensors", "samples/by_class/grid.png", "map.png"],
    "launch/README.md": ["runs/photos/checkpoints"],
    "eval/README.md": [
        "weights/photos/denoiser.safetensors",
        "runs/photos/report.html",
        "compare/index.html",
        "runs/imported/metrics.jsonl",
    ],
}
NOT_RUN = {
    "python3 -m venv": "the suite runs in what it makes",
    "pip install": "the suite runs in what it makes",
    "./launch/demo.sh": "a test below",
    "./launch/test.sh": "it runs this suite",
    "curl": "no network: write_cifar makes a smaller archive of the same form",
    "docker": "no Docker",
    "kubectl": "no Kubernetes",
    "sbatch": "no Slurm: test_launch.py and test_sweep.py run the scripts with a stand-in",
    "diffpipe train configs/fashion_mnist/ddpm.yaml optimizer.lr=5e-4,1e-3 seed=0,1 run.dir=": "test_sweep.py, in bash",
    "diffpipe report runs/photos --watch": "it serves until Ctrl-C: test_report.py looks at what it serves",
}
SMALL = [*TINY_RUN, "data.resolution=8", "data.workers=0", "train.steps=2", "sample.every=0"]
LAUNCH = shlex.split("accelerate launch --config_file launch/cpu.yaml --num_processes 2 -m diffpipe")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ALL_READMES = sorted(
    path.relative_to(HOME).as_posix()
    for pattern in ("README.md", "configs/**/README.md", "eval/**/README.md", "launch/**/README.md")
    for path in HOME.glob(pattern)
)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each code block with a language, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (HOME / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(tuple(NOT_RUN))]


def small_words(config: str) -> list[str]:
    """Overrides that make the training of a config tiny."""
    tiny = tiny_stage(read_merged(Experiment, HOME / config).tree["stage"])
    return [word for word in [*tiny, *SMALL] if word != "stage.teacher=null"]  # the page trains the teacher first


def shortened(line: str) -> str:
    """The command with little to do: CPUs for GPUs, a tiny network, a handful of images, local weights."""
    line = line.replace("--config_file launch/ddp.yaml", "--config_file launch/cpu.yaml --num_processes 2")
    line = line.replace("fsdp.yaml", "fsdp.yaml --num_processes 2 --main_process_port 0")  # without a GPU: over gloo
    line = line.replace("--num_processes 2 eval/", "--num_processes 2 --main_process_port 0 eval/")
    if " train runs/imported/" in line:  # whose network has its size
        return line.replace("train.steps=5000", "train.steps=2") + " data.batch_size=4 data.workers=0"
    if " train " in line or " doctor " in line:
        (config,) = re.findall(r"configs/\S+\.yaml", line)
        return line + "".join(f" '{word}'" for word in small_words(config))
    if " verify-resume " in line:  # other world sizes have their own test, whose processes start sooner
        words = [*TINY, "data.resolution=8", "data.workers=0"]
        return line.replace(
            "--steps 12 --worlds 1,2,4", " ".join(f"'{word}'" for word in words) + " --steps 6 --worlds 1"
        )
    if " pack configs/" in line:
        return line.replace("shards/train", "shards/test") + " --per-class 3 --resolution 8"
    if " compress " in line:
        return line + " --n 2 --no-comparison"
    if " --split-by " in line:  # of a dozen groups
        return line + " --test-fraction 0.5"
    if " --resolution 64" in line:  # the size that the tiny runs have
        return line.replace("--resolution 64", "--resolution 8")
    if " sample " in line:
        return line.replace("--steps 1000", "--steps 3")
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
        line = line.replace("--ode --steps 20", "--ode --steps 1").replace("--n 1000", "--n 4")
        return line.replace("--n 100", "--n 4").replace("--steps 60", "--steps 3")
    if " anomaly " in line:
        return line + " --n 6"
    if " --metrics precision" in line:
        return line + " --n 6"
    if " eval " in line or "fid.py" in line:
        return line + " --n 6 --metrics fd_efficientnet_lite0"
    return line


def run(line: str, home: Path, *, real: bool) -> None:
    """The shortened command in `home`. real: as the shell finds it.

    Otherwise the fork server runs it, also for `accelerate launch` on CPUs: the demo's test below starts that for real.
    """
    words = shlex.split(shortened(line).replace("~", str(home)))
    if not real and words[0] == "diffpipe":
        result = diffpipe(*words[1:], cwd=home)
    elif not real and words[: len(LAUNCH)] == LAUNCH:
        result = diffpipe(*words[len(LAUNCH) :], cwd=home, processes=2)
    else:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, f"{words}\n{result.stderr}"


def run_python(text: str, home: Path) -> None:
    """The shortened block in `home`, by an interpreter of its own."""
    for name, small in {"n": 4, "steps": 2}.items():
        text = re.sub(rf"\b{name}=\d+", f"{name}={small}", text)
    if "diffpipe.train(" in text:
        (config,) = re.findall(r"configs/\S+\.yaml", text)
        words = ", ".join(f'"{word}"' for word in small_words(config))
        text = re.sub(r'"run\.dir=[^"]+"', rf"\g<0>, {words}", text)
    env = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", text]
    result = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, f"{text}\n{result.stderr}"


def with_few_test_images(checkout: Path, few: Path) -> None:
    """Replace the test set in a checkout, which all scores have as their reference."""
    test = checkout / "configs" / "fashion_mnist" / "shards" / "test"
    shutil.rmtree(test)
    shutil.copytree(few, test)


@pytest.mark.timeout(1800)  # a dozen commands, one after the other
@pytest.mark.parametrize("page", BEFORE)
def test_every_command_block_runs(page: str, tmp_path: Path, few_test_images: Path) -> None:
    for name in ("configs", "launch", "eval"):
        shutil.copytree(HOME / name, tmp_path / name)
    with_few_test_images(tmp_path, few_test_images)
    write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles())
    for i in range(24):
        folder = tmp_path / ("photos" if i < 12 else "held_out") / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"visit{i}_0.jpg")
    for line in BEFORE[page]:
        run(line, tmp_path, real=False)
    ran = 0
    for language, text in blocks(page):
        if language == "python":
            run_python(text, tmp_path)
        for line in commands(text) if language == "sh" else []:
            run(line, tmp_path, real=ran == 0)
            ran += 1
    assert ran >= 3
    for name in MADE[page]:
        assert (tmp_path / name).exists(), name


def test_every_block_is_of_a_language_that_is_tested() -> None:
    for page in BEFORE:
        assert {language for language, _ in blocks(page)} <= {"sh", "python", "yaml"}, page


def test_the_config_with_defaults_on_the_page_is_the_one_in_the_folder(tmp_path: Path) -> None:
    (text,) = [text for page in BEFORE for language, text in blocks(page) if language == "yaml"]
    for path in (HOME / "configs" / "imagenet256").glob("*.yaml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "page.yaml").write_text(text)
    shown, whole = (read_merged(Experiment, tmp_path / name).tree for name in ("page.yaml", "dit_b2.yaml"))
    assert shown["run"] == whole["run"]
    assert shown["stage"]["network"] == whole["stage"]["network"]


def test_the_readme_is_short() -> None:
    assert len((HOME / "README.md").read_text().split()) <= 1300


@pytest.mark.parametrize("page", ALL_READMES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall((HOME / page).read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (HOME / page).parent / path if path else HOME / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("folder", ["launch", "configs", "eval"])
def test_each_page_names_what_lies_beside_it(folder: str) -> None:
    text = (HOME / folder / "README.md").read_text()
    unnamed = {"README.md", "setup.sh", "__init__.py", "__pycache__"}
    for path in (HOME / folder).iterdir():
        assert path.name in unnamed or path.name in text, path


def test_the_demo_trains_samples_scores_and_says_where_the_grid_is(tmp_path: Path, few_test_images: Path) -> None:
    # In a checkout of its own, with this installation as its .venv; the script is the user's, word for word.
    for name in ("configs", "launch", "diffpipe", "pyproject.toml", "README.md", "LICENSE"):
        source = HOME / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "accelerate").symlink_to(Path(sys.executable).parent / "accelerate")
    (venv / ".installed-dev").touch()
    with_few_test_images(tmp_path, few_test_images)
    env = os.environ | {"OMP_NUM_THREADS": "1", "RUN": "runs/x", "N": "20"}
    result = subprocess.run(
        ["./launch/demo.sh", *TINY, "train.steps=2"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    grid = result.stdout.splitlines()[-1].partition(": ")[2]
    with Image.open(tmp_path / grid) as image:
        assert image.size == (10 * 30 * 2, 10 * 30 * 2)
    assert re.search(r"fd_efficientnet_lite0 +[\d.]+ +\(real images against the same: [\d.]+\)", result.stdout)
    assert len(list((tmp_path / "runs/x/scores").iterdir())) == 1


def recorded(script: str, home: Path) -> list[list[str]]:
    """The words of each diffpipe command that the script gives, in a checkout of its own."""
    shutil.copytree(HOME / "launch", home / "launch")
    shutil.copy(HOME / "pyproject.toml", home)
    recorder = home / ".venv" / "bin" / "diffpipe"
    recorder.parent.mkdir(parents=True)
    (home / ".venv" / ".installed-dev").touch()
    recorder.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:], file=open('asked', 'a'))\n")
    recorder.chmod(0o755)
    subprocess.run([f"./launch/{script}"], cwd=home, check=True, capture_output=True)
    return [ast.literal_eval(line) for line in (home / "asked").read_text().splitlines()]


def rows_of(words: list[str], home: Path) -> list[ComparisonRow]:
    """The rows of a `compare` command, whose runs alone are missing."""
    options = dict(pairwise(words))
    assert (HOME / options["--reference"] / "index.safetensors").exists()
    assert all(parse_metric(name) for name in options["--metrics"].split(","))
    refusal = diffpipe(*words, cwd=home).stderr  # the runs are not there; every option is
    assert "runs/fashion_mnist/" in refusal
    assert "usage:" not in refusal
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", nargs="+", action="append")
    return comparison_rows([], parser.parse_known_args(words)[0].row)


def test_the_families_script_compares_what_it_trains_and_trains_first_what_others_need(tmp_path: Path) -> None:
    *trained, comparison = recorded("families.sh", tmp_path)
    runs: list[str] = []
    for train, path in trained:
        assert train == "train"
        config = load_config(Experiment, HOME / path)
        others = [getattr(config.stage, key, None) for key in ("teacher", "codec")]
        needed = [run for run in (getattr(other, "run", None) for other in others) if run]
        assert set(needed) <= set(runs), f"{path} starts from what is not trained yet"
        runs.append(config.run.dir)
    compared = {row.path.as_posix() for row in rows_of(comparison, tmp_path)}
    assert compared == set(runs) - {"runs/fashion_mnist/latent_vae"}


def test_the_objectives_script_compares_runs_that_differ_in_the_objective_alone(tmp_path: Path) -> None:
    *trained, comparison = recorded("objectives.sh", tmp_path)
    trees: dict[str, list[str]] = {}
    others: list[dict[str, Any]] = []
    demo_config = HOME / "configs/fashion_mnist/demo.yaml"
    for train, path, *overrides in trained:
        assert (train, HOME / path) == ("train", demo_config)
        config = load_config(Experiment, demo_config, overrides)
        trees[config.run.dir] = overrides
        objective = {"prediction", "schedule", "timesteps", "weighting", "one_sided_ends", "sampler"}
        others.append(config.model_dump(exclude={"run": {"dir"}, "stage": objective}))
    *same, momentum, demo = others  # the last two differ in Muon's momentum, and the demo in its network
    assert all(other == same[0] for other in same)
    assert momentum["stage"] == same[0]["stage"] != demo["stage"]
    whole = load_config(Experiment, demo_config, ["train.minutes=null"])
    assert load_config(Experiment, demo_config, [*trained[-1][2:], f"run.dir={whole.run.dir}"]) == whole
    assert all(other["data"]["batch_size"] * other["train"]["steps"] == 48_000 for other in others)
    rows = rows_of(comparison, tmp_path)
    assert {row.path.as_posix() for row in rows} == trees.keys()
    for row in rows:
        settings = [*trees[row.path.as_posix()], *row.overrides]
        config = load_config(Experiment, demo_config, settings)
        config.stage.build(ImageShape(1, square(28), 10))  # what does not go together is refused
