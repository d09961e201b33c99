"""The autoregressive stage: tokens per second in training and in sampling, beside plain code on the same network.

    OMP_NUM_THREADS=1 python -m eval.speed.autoregressive
    python -m eval.speed.autoregressive --config configs/cifar10/autoregressive.yaml data.batch_size=2

Training: steps of the trainer, and of a plain loop as in nanoGPT: autocast, forward, backward, clip, AdamW. The trainer
does all this, and beside it the average of the weights, the check for non-finite gradients and the noise by position.
They take turns. Both train the config's network with AdamW on the same images of noise. A ratio is the median of those
of two steps in turn, so that it holds on a machine that does other things, too. The CPU time is that of this process.

Sampling: with cached keys and values, and with a whole forward pass for each value. Of the latter, `--passes` are timed
and multiplied. The network has as many tokens in each pass as an image has.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import cast

import torch
from tqdm import tqdm

from diffpipe.errors import UserError
from diffpipe.nn.pixel_transformer import PixelTransformer
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoregressive import TRANSFORMER, AutoregressiveStage
from eval.speed.benchmark import (
    NoiseTraining,
    StepTime,
    add_arguments,
    load_experiment,
    setting_in_words,
    start_runtime,
    step_time,
    synchronized_time,
    table,
)


class PlainTraining:
    """nanoGPT's loop on the network of a stage."""

    def __init__(self, training: NoiseTraining):
        self.runtime, self.batch = training.runtime, training.batch
        self.stage = cast(AutoregressiveStage, training.trainer.stage)
        torch.manual_seed(0)
        self.net = self.runtime.place(self.stage.networks()[TRANSFORMER])
        optimizer = training.experiment.optimizer
        self.clip = optimizer.clip
        self.adamw = torch.optim.AdamW(self.net.parameters(), lr=optimizer.lr, betas=optimizer.betas, fused=True)

    def step(self) -> None:
        device = self.runtime.device
        images = self.batch.images.to(device)
        labels = None if self.batch.labels is None else self.batch.labels.to(device)
        with torch.autocast(device.type, self.runtime.dtype, enabled=self.runtime.dtype != torch.float32):
            parameters = self.net(images, labels if self.stage.classes else None)
            loss = -self.stage.head.log_likelihood(parameters, self.stage.grid.split(images)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def timed_step(self) -> float:
        since = synchronized_time(self.runtime)
        self.step()
        return synchronized_time(self.runtime) - since


def training_rows(args: argparse.Namespace, training: NoiseTraining) -> list[dict[str, str]]:
    loops = {"the trainer": training.timed_step, "a plain loop": PlainTraining(training).timed_step}
    tokens = len(training.batch.images) * cast(AutoregressiveStage, training.trainer.stage).grid.tokens
    times: dict[str, list[StepTime]] = {name: [] for name in loops}
    for i in tqdm(range(args.steps + 1), desc="training"):
        for name, step in [*loops.items()][:: 1 if i % 2 else -1]:
            times[name].append(step_time(step))
    plain = times["a plain loop"][1:]  # the first one warms up
    return [_row(f"training by {name}", tokens, steps[1:], plain, "a plain loop's") for name, steps in times.items()]


@torch.no_grad()
def sampling_rows(args: argparse.Namespace, training: NoiseTraining) -> list[dict[str, str]]:
    stage, runtime = cast(AutoregressiveStage, training.trainer.stage), training.runtime
    net = cast(PixelTransformer, training.trainer.nets[TRANSFORMER]).eval()
    rng = KeyedRNG(0, torch.arange(args.images, device=runtime.device))
    labels = rng.positions % stage.classes if stage.classes else None
    images = torch.zeros(args.images, *stage.shape.chw, dtype=torch.uint8, device=runtime.device)

    def timed(run: Callable[[], object]) -> float:
        since = synchronized_time(runtime)
        run()
        return synchronized_time(runtime) - since

    with runtime.autocast():
        cached = step_time(lambda: timed(lambda: stage.generate({TRANSFORMER: net}, rng, labels)))
        turns = tqdm(range(args.passes + 1), desc="passes")
        passes = [step_time(lambda: timed(lambda: net(images, labels))) for _ in turns]
    wall, cpu = (stage.dims * statistics.median(times) for times in zip(*passes[1:], strict=True))
    uncached, tokens = [StepTime(wall, cpu)], args.images * stage.grid.tokens
    return [
        _row(f"sampling {args.images} images, {name}", tokens, times, uncached, "uncached")
        for name, times in (("cached", [cached]), ("uncached", uncached))
    ]


def _row(
    name: str, tokens: int, times: Sequence[StepTime], references: Sequence[StepTime], reference: str
) -> dict[str, str]:
    """The tokens per second, and the medians of their ratios to the reference's in the same turns."""
    turns = list(zip(times, references, strict=True))
    wall, cpu = (statistics.median(other[i] / own[i] for own, other in turns) for i in (0, 1))
    speed = tokens / statistics.median(time.wall for time in times)
    return {"": name, "tokens/s": f"{speed:,.0f}", "ratio": f"{wall:.3f}", "by CPU time": f"{cpu:.3f}", "to": reference}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/autoregressive.yaml")
    parser.add_argument("--steps", type=int, default=8, help="training steps of each loop (default %(default)s)")
    parser.add_argument("--images", type=int, default=16, help="images to sample at once (default %(default)s)")
    parser.add_argument("--passes", type=int, default=3, help="whole passes to time (default %(default)s)")
    args = parser.parse_args(argv)
    experiment = load_experiment(args, "optimizer.kind=adamw", "train.minutes=null")
    if experiment.stage.kind != "autoregressive":
        raise UserError(f"{args.config} is of stage.kind {experiment.stage.kind}; give one of autoregressive")
    with start_runtime(experiment) as runtime:
        training = NoiseTraining(experiment, runtime)
        stage = cast(AutoregressiveStage, training.trainer.stage)
        rows = [*training_rows(args, training), *sampling_rows(args, training)]
        print(table(rows))
        print(f"\n{args.config}, {stage.grid.tokens} tokens per image; {setting_in_words(runtime)}")


if __name__ == "__main__":
    main()
