"""Every stage of tests/support/stage_cases.py in this process: that it learns, in bf16 too, and the keys it refuses."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from diffpipe.diffusion.trajectory import HasChain
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Borrows, Encodes, Generates, Scores
from diffpipe.resolution import Resolution
from diffpipe.rng import KeyedRNG
from diffpipe.stages.gan_losses import DISCRIMINATOR, GENERATOR, PENALTY
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.stage_cases import CASES, FASHION, real_batch

BITS = {"likelihood", "bound", "adversarial"}  # the phases whose loss is in bits/dim
every_stage = pytest.mark.parametrize("name", CASES)


def test_every_kind_of_stage_and_every_config_is_a_case() -> None:
    assert {case.config for case in CASES.values()} == {path.stem for path in FASHION.glob("*.yaml")}
    kinds = {
        get_args(c.model_fields["kind"].annotation)[0] for c in get_args(Experiment.model_fields["stage"].annotation)
    }
    assert {case.experiment().stage.kind for case in CASES.values()} == kinds


def trainer(name: str, runtime: Runtime, lr: float) -> Trainer:
    optimizer = OptimizerConfig(lr=lr, warmup=0, clip=10.0)
    settings = TrainConfig(steps=1000, log_every=1)
    return Trainer(CASES[name].stage(), runtime, settings, optimizer, EMAConfig(), seed=0, batch_size=8)


@pytest.mark.slow
@every_stage
def test_each_phase_alone_learns_one_batch_by_heart(name: str) -> None:
    """The same images, noise and latents at every step: what is left to learn is nothing.

    Errors and penalties fall to a tenth and bounds by 2 bits/dim. In a game the discriminator learns to tell the batch
    from what an untrained generator makes, and then the generator to fool it: log 2 is what either loses by where the
    discriminator can but guess.
    """
    with Runtime.start("fp32", "cpu") as runtime:
        t = trainer(name, runtime, lr=1e-2)
        for phase in sorted(t.stage.phases(), key=lambda phase: phase.name == PENALTY):
            if phase.name != GENERATOR:
                t = trainer(name, runtime, lr=1e-2)
            losses = list(alone(t, phase, 60))
            if phase.name in BITS:
                assert losses[-1] < losses[0] - 2
            else:
                assert losses[-1] < losses[0] / 10
            if phase.name in {DISCRIMINATOR, GENERATOR}:
                assert losses[-1] < math.log(2) / 10


def alone(t: Trainer, phase: Any, steps: int) -> Iterator[float]:
    """The phase's loss on one batch, step by step, while only it trains."""
    for _ in range(steps):
        t._update(phase, [real_batch(8)], 1 / t.batch_size)
        t.step += 1
        yield t.log_values()["loss"]


@every_stage
def test_in_bf16_it_trains_as_in_fp32_but_for_rounding(name: str) -> None:
    """Within the first steps' losses agree to 1%, of which bf16 resolves 0.4%; all that is trained stays finite."""
    by_precision = []
    for precision in ("fp32", "bf16"):
        with Runtime.start(precision, "cpu") as runtime:
            t = trainer(name, runtime, lr=1e-3)
            losses: dict[str, list[float]] = {}
            for _ in range(4):
                t.train_step([real_batch(8)])
                for key, value in t.log_values().items():  # raises where a loss or a gradient is not finite
                    if key.endswith("loss"):
                        losses.setdefault(key, []).append(value)
            by_precision.append(losses)
            assert all(torch.isfinite(tensor).all() for tensor in t.state().values())
    full, half = by_precision
    assert full.keys() == half.keys()
    for key, losses in full.items():
        assert half[key] == pytest.approx(losses, rel=1e-2, abs=1e-3), key
        assert half[key] != losses, "bf16 was not used"


def leaves(tree: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.{key}")
        if key != "kind":  # without it nobody knows which other keys there are
            yield f"{path}.{key}"


@every_stage
def test_every_key_of_it_that_is_mistyped_is_refused_with_the_nearest_that_exists(name: str) -> None:
    case = CASES[name]
    keys = list(leaves(case.experiment().stage.model_dump(mode="json"), "stage"))
    assert len(keys) > 5
    for key in keys:
        wrong = key[:-1] + key[-1] * 2
        with pytest.raises(UserError) as refusal:
            case.experiment(f"{wrong}=1")
        message = str(refusal.value)
        assert message == f"unknown key {wrong}; did you mean {key}?"


@every_stage
def test_the_networks_that_generate_and_their_evaluations_are_as_declared(name: str) -> None:
    """Counted by hooks. A flow generates by its parts: its own forward pass runs the other way."""
    stage = CASES[name].stage()
    assert CASES[name].experiment().stage.generates == isinstance(stage, Generates)
    if not isinstance(stage, Generates):
        return
    own = {key: net.requires_grad_(False).eval() for key, net in stage.networks().items()}
    borrowed = stage.borrowed_networks() if isinstance(stage, Borrows) else {}
    evaluated, ran = 0, set[str]()

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    def note(key: str, _: Any, __: Any) -> None:
        ran.add(key)

    for net in own.values():
        net.register_forward_pre_hook(count)
    for key, net in {**own, **borrowed}.items():
        for part in net.modules():
            part.register_forward_pre_hook(functools.partial(note, key))
    stage.generate(own, KeyedRNG(0, torch.arange(3)), torch.arange(3))
    assert ran == set(stage.generating)
    assert stage.evaluations() == (evaluated / 3 or None)


@pytest.mark.parametrize("name", [name for name in CASES if "ddpm" in name or "adversarial" in name])
def test_a_chain_ends_in_the_generated_images(name: str) -> None:
    stage = CASES[name].stage()
    assert isinstance(stage, Generates)
    assert isinstance(stage, HasChain)
    nets = {key: net.requires_grad_(False).eval() for key, net in stage.networks().items()}
    states = stage.trajectory(nets, KeyedRNG(0, torch.arange(2)), torch.arange(2), 3)
    assert torch.equal(states[-1].x0, stage.generate(nets, KeyedRNG(0, torch.arange(2)), torch.arange(2)))
    assert len(states) == 3
    assert states[0].ratio > states[1].ratio > states[2].ratio == 0
    assert all(state.x_t.shape == state.x0.shape == (2, 1, 8, 8) for state in states)


@every_stage
def test_it_takes_images_that_are_not_square(name: str) -> None:
    """It trains on them, makes some, and scores and encodes them."""
    resolution = Resolution(8, 12)
    case = CASES[name]._replace(resolution=resolution)
    if "ddpm" in name:
        case = case._replace(words=(*case.words, "stage.sampler.vlb_steps=5"))
    stage, batch = case.stage(), real_batch(4, resolution)
    nets, rng = stage.networks(), KeyedRNG(0, batch.positions)
    for phase in stage.phases():
        stage.loss(phase, nets, batch, rng).per_sample.mean().backward()
    trained = {name for phase in stage.phases() for name in phase.trains}
    assert all(any(p.grad is not None for p in nets[name].parameters()) for name in trained)
    nets = {key: net.eval() for key, net in nets.items()}
    if isinstance(stage, Generates):
        assert stage.generate(nets, rng, batch.labels).shape == batch.images.shape
    if isinstance(stage, Scores) and case.codec is None:
        assert torch.isfinite(stage.score(nets, batch, rng).per_sample).all()
    if isinstance(stage, Encodes):
        z = stage.encode_latents(nets, batch.images, batch.labels, rng)
        assert stage.decode_latents(nets, z, batch.labels).shape == batch.images.shape
