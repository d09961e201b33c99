"""Sample grids, validation losses and scores of a run while it trains, all of its averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid, save_png
from diffpipe.evaluation.image_sources import GeneratedImages, ShardImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.overlap import floor_or_halves
from diffpipe.evaluation.reconstruction import held_out_images
from diffpipe.evaluation.score_files import score_file
from diffpipe.evaluation.score_remarks import score_remarks
from diffpipe.evaluation.scores import score, table
from diffpipe.evaluation.validation import Validation
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Generates, ImageShape, Reconstructs, Stage
from diffpipe.metrics import protocol
from diffpipe.rng import KeyedRNG
from diffpipe.train.callbacks import Callback
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime
from diffpipe.train.tracker_kinds import grid_path

_COLUMNS = 8
"""Columns of a grid of reconstructions without classes."""


class Monitor(NamedTuple):
    """The hooks of a run that look at its averaged networks. Each of `draw`, `validate` and `score` is a collective."""

    experiment: Experiment
    runtime: Runtime
    shards: ShardSet
    shape: ImageShape
    stage: Stage
    trainer: Trainer
    validation: Validation | None
    callbacks: Sequence[Callback] = ()

    def draw(self) -> None:
        """A grid in samples/: generated images, or real images above their reconstructions."""
        n, columns = self.experiment.sample.n, self.shape.classes or None
        if isinstance(self.stage, Generates):
            images = torch.cat(map_over_ranks(n, self._generated(n).images, self.runtime))
        else:
            columns = columns or _COLUMNS
            images = self._reconstructed(n, columns)
        if self.runtime.main and images is not None:
            path = grid_path(self.experiment.run.path, self.trainer.step)
            picture = grid(images, columns)
            self.runtime.trackers.log_grid(picture, self.trainer.step)
            try:
                path.parent.mkdir(exist_ok=True)
                save_png(picture, path)
            except OSError as error:  # a picture never stops a run
                print_on_rank_zero(self.runtime, f"warning: {path}: {error.strerror}: the grid is not written")
                return
            for callback in self.callbacks:
                callback.on_samples(path)

    def validate(self) -> dict[str, float]:
        """The stage's losses on held-out images, by name."""
        assert self.validation is not None
        values = self.validation.measure(self.trainer.ema_networks(), self.trainer.step - 1, self.runtime)
        loss = values["validation_loss"]
        print_on_rank_zero(
            self.runtime, f"step {self.trainer.step}: validation_loss {loss:.4f}, of the averaged weights"
        )
        return values

    def score(self) -> None:
        """The metrics of eval.metrics against data.test, as a file in scores/."""
        config, data, shape = self.experiment.eval, self.experiment.data, self.shape
        assert data.test is not None
        reference = ShardImages(shard_set.load(data.test, cache=data.shard_cache), shape.channels, shape.resolution)
        floor = ShardImages(self.shards, shape.channels, shape.resolution, n=config.n)
        floor = floor_or_halves(floor, reference, self.runtime)
        result = score(self._generated(config.n), reference, floor, config.metrics, self.runtime)
        self.runtime.trackers.log(result.scores, self.trainer.step)
        if self.runtime.main:
            path = score_file(self.experiment.run.path, "train", self.trainer.step, config.n, result.protocol)
            try:
                protocol.write(result, path)
            except UserError as error:  # the table below has the scores
                print_on_rank_zero(self.runtime, f"warning: {error}")
        print_on_rank_zero(self.runtime, f"step {self.trainer.step}\n{table(result)}")
        if self.trainer.step <= config.every:  # once in a run; training images in the reference are the floor's remark
            for remark in score_remarks(result.protocol):
                print_on_rank_zero(self.runtime, f"note: {remark}")

    def _generated(self, n: int) -> GeneratedImages:
        """The images of the first n sample indices."""
        sampler = self.experiment.stage.sampler.model_dump(mode="json")
        about = {"step": self.trainer.step, "weights": self.experiment.ema.weights, "sampler": sampler}
        nets, seed = self.trainer.ema_networks(), self.experiment.seed
        return GeneratedImages(self.stage, nets, self.shape, self.runtime, n=n, seed=seed, about=about)

    def _reconstructed(self, n: int, columns: int) -> Tensor | None:
        """About n images: rows of real ones, each above a row of their reconstructions."""
        if not isinstance(self.stage, Reconstructs):
            return None
        rows = max(1, n // (2 * columns))
        real = ShardImages(held_out_images(self.experiment), self.shape.channels, self.shape.resolution)
        images = real.images(range(rows * columns))
        rng = KeyedRNG(self.experiment.seed, torch.arange(len(images), device=self.runtime.device))
        with torch.no_grad(), self.runtime.autocast():
            decoded = self.stage.reconstruct(self.trainer.ema_networks(), images.to(self.runtime.device), rng).cpu()
        return rearrange([images, decoded], "two (rows columns) c h w -> (rows two columns) c h w", columns=columns)
