"""The codebook by moving averages: against a loop by hand, its restarts, its scales and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.nn.codebook import EMAQuantizer, EMAQuantizerConfig, nearest
from diffpipe.resolution import Resolution
from diffpipe.rng import KeyedRNG
from tests.support.randomized import normal

SCALES = (1, 2, 4)
YES = torch.tensor(True)


def quantizer(codes: int = 16, channels: int = 3, **changes: Any) -> EMAQuantizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EMAQuantizer(EMAQuantizerConfig(codes=codes, **changes), channels)


def rng(positions: Any) -> KeyedRNG:
    return KeyedRNG(3, torch.as_tensor(positions))


def distances(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x.double(), codebook.double())


def test_each_vector_becomes_the_nearest_code() -> None:
    x, codebook = normal(500, 7), normal(40, 7)
    assert torch.equal(nearest(x, codebook), distances(x, codebook).argmin(1))


def test_the_forward_pass_is_the_nearest_vector_and_the_gradient_passes_straight_through() -> None:
    net, z = quantizer(), normal(2, 3, 4, 5).requires_grad_()
    q = net(z)
    x = z.detach().permute(0, 2, 3, 1).reshape(-1, 3)
    codes = distances(x, net.codebook).argmin(1)
    assert torch.equal(q.codes.flatten(), codes)
    torch.testing.assert_close(q.latents, net.codebook[codes].reshape(2, 4, 5, 3).permute(0, 3, 1, 2))
    torch.testing.assert_close(net.embed(q.codes, Resolution(4, 5)), q.latents.detach())
    torch.testing.assert_close(q.commitment, (z - q.latents.detach()).square().mean((1, 2, 3)))
    weights = normal(2, 3, 4, 5)
    (through,) = torch.autograd.grad((q.latents * weights).sum(), z, retain_graph=True)
    torch.testing.assert_close(through, weights)
    (pull,) = torch.autograd.grad(q.commitment.sum(), z)
    torch.testing.assert_close(pull, 2 / 60 * (z - q.latents).detach())
    assert list(net.parameters()) == []


@pytest.mark.parametrize("split", [[6], [2, 4], [1, 1, 3, 1]])
def test_the_averages_are_those_of_a_loop_by_hand_in_every_split(split: list[int]) -> None:
    """van den Oord et al. 2017, eqs. 6 to 8, over three batches of six images, one of them not valid."""
    net = quantizer(decay=0.9, restart=0)
    counts, sums = np.ones(16), net.vector_sums.double().numpy().copy()
    for step in range(3):
        z, valid = normal(3, 6, 3, 4, 4)[step], torch.tensor([True, True, False, True, True, True])
        n, m = np.zeros(16), np.zeros((16, 3))
        for x in z[valid].permute(0, 2, 3, 1).reshape(-1, 3).double().numpy():
            code = ((sums / counts[:, None] - x) ** 2).sum(1).argmin()
            n[code] += 1
            m[code] += x
        counts, sums = 0.9 * counts + 0.1 * n, 0.9 * sums + 0.1 * m
        rows = torch.arange(6).split(split)
        parts = [net.sums(net(z[part]), valid[part], rng(6 * step + part)) for part in rows]
        net.update({name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}, YES)
        np.testing.assert_allclose(net.counts, counts, rtol=1e-5)
        np.testing.assert_allclose(net.vector_sums, sums, rtol=1e-4, atol=1e-5)


def test_an_update_that_is_left_out_changes_nothing() -> None:
    net = quantizer()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sums = {name: tensor * torch.nan for name, tensor in net.sums(net(normal(4, 3, 4, 4)), None, rng(range(4))).items()}
    net.update(sums, torch.tensor(False))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def restarted(net: EMAQuantizer, z: Tensor, positions: Any, valid: Tensor | None = None) -> Tensor:
    """The codebook after an update by which codes 2 and up are hardly used."""
    net.counts.copy_(torch.full_like(net.counts, 1e-6))
    net.counts[:2] = 100.0
    net.vector_sums.copy_(net.vector_sums * net.counts[:, None])
    net.vector_sums[2:] += 1e6 * net.counts[2:, None]  # far away, so that no vector becomes theirs
    net.update(net.sums(net(z), valid, rng(positions)), YES)
    return net.codebook


def test_a_code_without_use_starts_again_at_a_vector_of_the_sample_whose_turn_it_is() -> None:
    z, positions = 5 * normal(4, 3, 4, 4), [34, 35, 36, 39]  # codes 2, 3, 4 and 7 of 16
    valid = torch.tensor([True, True, True, False])
    net = quantizer(restart=0.05)
    codebook = restarted(net, z, positions, valid)
    for sample, code in enumerate((2, 3, 4)):
        apart = distances(codebook[code][None], z[sample].flatten(1).T).min()
        assert 0 < apart < 0.05 * codebook[code].norm()
        assert net.counts[code] > 0.1 * net.counts.mean()
    assert (codebook[[5, 6, 7, 8]].abs() > 1e5).all()  # nobody's turn, or that of a sample that is not valid
    assert torch.equal(restarted(quantizer(restart=0.05), z, positions, valid), codebook)
    assert (restarted(quantizer(restart=0), z, positions)[2:].abs() > 1e5).all()


def test_of_several_samples_of_one_code_it_takes_one() -> None:
    z = torch.arange(1.0, 9.0)[:, None, None, None] * torch.tensor([100.0, 10.0, 1.0])[:, None, None] * torch.ones(4, 4)
    codebook = restarted(quantizer(restart=0.05), z, [2 + 16 * i for i in range(8)])
    assert distances(codebook[2][None], z[:, :, 0, 0]).min() < 0.03 * codebook[2].norm()


def test_a_code_that_is_never_used_keeps_its_vector() -> None:
    net, z = quantizer(restart=0, decay=0.5), normal(2, 3, 4, 4)
    net.vector_sums[5] = 1e3
    sums = net.sums(net(z), None, rng([0, 1]))
    for _ in range(300):
        net.update(sums, YES)
    assert 0 < net.counts[5] < 1e-18
    torch.testing.assert_close(net.codebook[5], torch.full((3,), 1e3))


def test_normalized_vectors_and_codes_have_unit_length() -> None:
    net, z = quantizer(normalize=True), normal(2, 3, 4, 4)
    q = net(z)
    torch.testing.assert_close(q.latents.norm(dim=1), torch.ones(2, 4, 4))
    cosine = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 3) @ F.normalize(net.vector_sums, dim=1).T
    assert torch.equal(q.codes.flatten(), cosine.argmax(1))
    assert torch.equal(net(7 * z).codes, q.codes)


def test_the_sum_of_all_scales_is_the_quantized_latent() -> None:
    """Each scale quantizes the mean, over its areas, of what the smaller ones have left."""
    net, z, latents = quantizer(scales=SCALES), normal(3, 3, 4, 4), Resolution(4, 4)
    q = net(z)
    assert q.codes.shape == (3, 21)
    total = torch.zeros_like(z)
    for scale, codes in zip(SCALES, q.codes.split([s * s for s in SCALES], 1), strict=True):
        rest = F.interpolate(z - total, (scale, scale), mode="area").permute(0, 2, 3, 1).reshape(-1, 3)
        assert torch.equal(codes.flatten(), distances(rest, net.codebook).argmin(1))
        vectors = net.codebook[codes].permute(0, 2, 1).reshape(3, 3, scale, scale)
        total = total + F.interpolate(vectors, (4, 4), mode="bicubic")
    torch.testing.assert_close(q.latents, total)
    torch.testing.assert_close(net.embed(q.codes, latents), q.latents)
    for scales, n in ((1, 1), (2, 5)):
        torch.testing.assert_close(net.partial(q.codes, latents, scales), net.partial(q.codes[:, :n], latents, scales))


def test_more_scales_and_codes_leave_a_smaller_error() -> None:
    """After training on the same latents."""
    errors = []
    for codes, scales in ((8, None), (64, None), (64, (1, 2, 4)), (64, (1, 2, 3, 4))):
        net, z = quantizer(codes, scales=scales, decay=0.8), normal(64, 3, 4, 4)
        for step in range(60):
            net.update(net.sums(net(z), None, rng(range(64 * step, 64 * step + 64))), YES)
        errors.append((net(z).latents - z).square().mean().item())
    assert errors == sorted(errors, reverse=True)


def test_maps_of_images_that_are_not_square_have_their_proportions() -> None:
    assert quantizer(scales=(1, 2, 4)).sizes(Resolution(4, 6)) == (Resolution(1, 2), Resolution(2, 3), Resolution(4, 6))
    with pytest.raises(UserError, match=r"stage\.quantizer\.scales are \[1, 2, 4\], and the latents are 7; the last"):
        quantizer(scales=(1, 2, 4)).sizes(Resolution(7, 7))


def test_it_starts_from_given_vectors_no_two_of_them_alike() -> None:
    net, vectors = quantizer(), normal(5, 3)
    net.start(vectors, rng(range(16)))
    assert (distances(net.codebook, vectors).min(1).values < 0.05 * net.codebook.norm(dim=1)).all()
    assert len(net.codebook.unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"codes": 0}, "greater than or equal to 2"),
        ({"scales": [4, 2]}, "scales are to rise"),
        ({"scales": []}, "scales are to rise"),
        ({"scales": [1, 4], "normalize": True}, "normalize is for one scale"),
    ],
)
def test_what_makes_no_codebook_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EMAQuantizerConfig.model_validate(keys)
