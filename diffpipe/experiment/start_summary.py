"""A training job in a few lines, as it starts: where it computes, what it trains, on what, and how far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import ImageShape
from diffpipe.plural import plural
from diffpipe.train.parallel import trainable_parameters
from diffpipe.train.runtime import Runtime


def start_summary(
    experiment: Experiment,
    runtime: Runtime,
    nets: Mapping[str, nn.Module],
    total: int,
    shape: ImageShape,
    step: int,
    parallel: str = "ddp",
) -> str:
    """total: the number of images. step: the step that training starts from.

    parallel: `ddp`, `fsdp` or `hsdp`, where there are several processes.
    """
    config, batch = experiment.train, experiment.data.batch_size
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU"
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[runtime.dtype]
    where = f"{plural(runtime.world, 'process', 'processes')} on {device}, {precision}"
    if runtime.world > 1:
        where += f", {parallel}"
    sizes = [f"{name} {_size(net)}" for name, net in nets.items()]
    size, classes = shape.resolution, f", {plural(shape.classes, 'class', 'classes')}" if shape.classes else ""
    data = f"{plural(f'{total:,}', 'image')} at {size.height}x{size.width}x{shape.channels}{classes}"
    epoch = f"{plural(f'{total / batch:.4g}', 'step')} of {plural(batch, 'image')} per epoch"
    every = experiment.checkpoint.every
    until = f"{config.steps}" if config.minutes is None else f"{config.steps} or {config.minutes:g} min"
    saves = f"a checkpoint every {plural(f'{every:,}', 'step')}, in {experiment.run.checkpoints}"
    return "\n".join(
        [
            f"{experiment.stage.kind}: {where}; parameters: {', '.join(sizes)}",
            f"{data}; {epoch}; steps {step} to {until}; {saves}",
        ]
    )


def _size(net: nn.Module) -> str:
    """The number of parameters, and of those that are trained where some are frozen."""
    total, trained = (
        sum(p.numel() for p in parameters) for parameters in (net.parameters(), trainable_parameters(net))
    )
    return _millions(total) if trained == total else f"{_millions(total)} ({_millions(trained)} trained)"


def _millions(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 10_000 else f"{n:,}"
