"""The reverse chains of generated images, from pure noise to x_0."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.diffusion.trajectory import ChainState, HasChain
from diffpipe.errors import UserError
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run, generated_images
from diffpipe.plural import plural
from diffpipe.train.runtime import Runtime

_NAMED_APART = ("kind", "steps", "guide", "vlb_steps")


class Trajectory(NamedTuple):
    """The chains of n images at k noise levels.

    x_t: scaled to alpha^2 + sigma^2 = 1. x0: the prediction from it. In the last column both are the images. ratios:
    sigma / alpha of each column. rows: the name of each image. sampler: in words, such as `ddim, 50 steps`.
    """

    x_t: UInt8[Tensor, "n k c h w"]
    x0: UInt8[Tensor, "n k c h w"]
    ratios: list[float]
    rows: list[str]
    sampler: str


def trajectory(run: Run, runtime: Runtime, *, n: int, columns: int, seed: int, label: int | str | None) -> Trajectory:
    """The chains of the run's first n images at up to `columns` noise levels, evenly spread. A collective.

    Rank 0 makes as many as fit into a chunk of `map_over_ranks`. Raises UserError where the run has no such chain.
    """
    stage, kind = run.stage, run.experiment.stage.kind
    if not isinstance(stage, HasChain):
        raise UserError(
            f"{run.home} is of stage.kind {kind}, which generates without a chain of noise levels; leave the "
            f"trajectory out"
        )
    if columns < 2:
        raise UserError(f"a trajectory in {plural(columns, 'column')}; give 2 or more")
    source = generated_images(run, runtime, n=n, seed=seed, label=label)

    def states(indices: range) -> list[ChainState]:
        chain = stage.trajectory(source.nets, *source.noise_and_labels(indices), columns)
        return [ChainState(state.ratio, state.x_t.cpu(), state.x0.cpu()) for state in chain]

    chunks = map_over_ranks(n, states, runtime)
    x_t = torch.cat([torch.stack([state.x_t for state in chain], dim=1) for chain in chunks])
    x0 = torch.cat([torch.stack([state.x0 for state in chain], dim=1) for chain in chunks])
    names, classes = run.experiment.data.class_names, source.noise_and_labels(range(n))[1]
    rows = [str(i) for i in range(n)]
    if classes is not None:
        rows = [f"{i}, {names[c] if names else f'class {c}'}" for i, c in enumerate(classes.tolist())]
    ratios = [state.ratio for state in chunks[0]]
    return Trajectory(x_t, x0, ratios, rows, _sampler_words(run, stage))


def _sampler_words(run: Run, stage: Any) -> str:
    """The sampler, its steps and whatever else differs from its defaults."""
    sampler = run.experiment.stage.sampler
    steps = getattr(sampler, "steps", None) or stage.evaluations()
    words = [getattr(sampler, "kind", run.experiment.stage.kind), plural(steps, "step")]
    changed = sampler.model_dump(mode="json", exclude_defaults=True)
    words += [f"{key} {value}" for key, value in changed.items() if key not in _NAMED_APART]
    if changed.get("guide"):
        words.append(f"guided by {changed['guide']['run']}")
    return ", ".join(words)
