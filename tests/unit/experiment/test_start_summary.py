"""The first lines of a job name its device, its networks' sizes, its data and its steps."""

from __future__ import annotations

from torch import nn

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.start_summary import start_summary
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.runtime import Runtime
from tests.support.commands import CONFIG


def test_it_counts_what_is_there(runtime: Runtime) -> None:
    words = ["data.batch_size=40", "train.steps=90", "checkpoint.every=1", "run.dir=runs/x"]
    experiment = load_config(Experiment, CONFIG, words)
    nets = {"denoiser": nn.Linear(300, 100), "small": nn.Linear(2, 3)}
    summary = start_summary(experiment, runtime, nets, 2000, ImageShape(1, square(28), 10), 30)
    first, second = summary.splitlines()
    assert first == "ddpm: 1 process on CPU, fp32; parameters: denoiser 0.03 M, small 9"
    data, epoch, steps, saves = second.split("; ")
    assert data == "2,000 images at 28x28x1, 10 classes"
    assert epoch == "50 steps of 40 images per epoch"
    assert steps == "steps 30 to 90"
    assert saves == "a checkpoint every 1 step, in runs/x/checkpoints"
