"""The samples of a small run, as its ranks record them."""

from __future__ import annotations

from diffpipe.verify.sample_diff import SampleRecord

STEPS, BATCH = 6, 4


def attempt(first: int, last: int, world: int) -> list[SampleRecord]:
    """Steps first … last − 1 as so many ranks record them: rank r has every world-th position."""
    steps = [range(step * BATCH, (step + 1) * BATCH) for step in range(first, last)]
    shares = [(step, batch[rank::world]) for rank in range(world) for step, batch in enumerate(steps, first)]
    return [SampleRecord(step, [*share], [f"image{position}" for position in share]) for step, share in shares]


UNINTERRUPTED = attempt(0, STEPS, 1)
