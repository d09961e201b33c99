"""The training pair and the simple loss."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffpipe.diffusion.objective import simple_loss, training_pair
from diffpipe.diffusion.process import predict_x0
from diffpipe.diffusion.samplers import SamplerConfig, sample
from diffpipe.diffusion.schedule import Schedule, ScheduleConfig
from diffpipe.rng import KeyedRNG

SCHEDULE = Schedule.build(ScheduleConfig())


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_pair_is_consistent_and_its_draws_are_the_named_ones():
    x0, rng = images(16), KeyedRNG(5, torch.arange(100, 116))
    x_t, t, eps = training_pair(SCHEDULE, x0, rng)
    assert torch.equal(t, rng.integers("timestep", 1000))
    assert torch.equal(eps, rng.normal("noise", (3, 4, 4)))
    early = t < 900  # later, dividing by sqrt(alpha_bar) magnifies the rounding
    torch.testing.assert_close(predict_x0(SCHEDULE, x_t, t, eps)[early], x0[early], atol=1e-4, rtol=0)


def test_the_pair_of_a_sample_does_not_depend_on_its_batch():
    x0, positions = images(12), torch.arange(12) + 2**33
    whole = training_pair(SCHEDULE, x0, KeyedRNG(0, positions))
    for part in ([0], [3, 4, 5], [11, 2]):
        alone = training_pair(SCHEDULE, x0[part], KeyedRNG(0, positions[part]))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, whole, strict=True))


def test_timesteps_are_uniform_over_the_whole_schedule():
    schedule = Schedule.build(ScheduleConfig(steps=10))
    t = training_pair(schedule, torch.zeros(20_000, 1), KeyedRNG(0, torch.arange(20_000))).t
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_the_loss_is_the_mean_square_of_each_sample():
    eps, eps_hat = images(4), images(4, seed=1)
    loss = simple_loss(eps, eps_hat)
    torch.testing.assert_close(
        loss, torch.stack([torch.nn.functional.mse_loss(*p) for p in zip(eps, eps_hat, strict=True)])
    )
    assert (simple_loss(eps, eps) == 0).all()


def test_the_loss_is_float32_and_has_a_gradient_in_half_precision_too():
    eps, eps_hat = images(4), images(4, seed=1).bfloat16().requires_grad_()
    loss = simple_loss(eps, eps_hat)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert eps_hat.grad is not None
    torch.testing.assert_close(eps_hat.grad.float(), 2 * (eps_hat.detach().float() - eps) / 48, atol=1e-3, rtol=1e-2)


class Reads(TorchDispatchMode):
    """Counts how often the host waited for a number on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_neither_training_nor_sampling_waits_for_the_device():
    rng, x0 = KeyedRNG(0, torch.arange(4)), images(4)
    with Reads() as reads:
        torch.ones(1).item()
        assert reads.count == 1
        pair = training_pair(SCHEDULE, x0, rng)
        simple_loss(pair.eps, pair.x_t)
        for kind in ("ancestral", "ddim"):
            config = SamplerConfig.model_validate({"kind": kind, "steps": 5, "eta": 0.5})
            sample(lambda x_t, t: x_t, SCHEDULE, config, rng, (3, 4, 4))
    assert reads.count == 1
