"""Every changed bit is found, and the deviation of a state is relative to the scale of its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.verify.checkpoint_diff import Deviation, deviations, differing_tensors, read_tensors
from diffpipe.verify.verdict import check_deviation
from tests.support.run_states import run_state


def state(seed: int = 0, noise: float = 0.0) -> dict[str, Tensor]:
    """A small state, and the same with relative noise on it. The bias has no gradient but rounding errors."""
    draw, other = (torch.Generator().manual_seed(number) for number in (seed, seed + 1000))
    weight, bias = torch.randn(8, 8, generator=draw), torch.zeros(8)
    tensors = {"net.unet.w": weight, "net.unet.b": bias, "ema.unet.w": weight / 2, "ema.unet.b": bias.clone()}
    tensors |= {"optimizer.unet.w.exp_avg": torch.randn(8, 8, generator=draw) * 1e-3}
    tensors |= {"optimizer.unet.b.exp_avg": torch.randn(8, generator=other if noise else draw) * 1e-10}
    tensors |= {"optimizer.unet.w.step": torch.tensor(24.0), "optimizer.unet.b.step": torch.tensor(24.0)}
    return {name: t * (1 + noise * torch.randn(t.shape, generator=other)) for name, t in tensors.items()}


def passed(tensors: dict[str, Tensor], noise: float = 1e-6) -> dict[str, bool]:
    """Which parts pass, where two uninterrupted runs differ by so much relative noise."""
    deviation, uninterrupted = deviations(tensors, state()), deviations(state(noise=noise), state())
    checks = [
        check_deviation(part, deviation[part], uninterrupted[part], "worlds 1 and 2", "fp32") for part in deviation
    ]
    return {check.name: check.failure is None for check in checks}


def test_rounding_passes_even_in_a_tensor_that_is_nothing_but_rounding() -> None:
    assert passed(state(noise=2e-6)) == {"weights": True, "averages": True, "optimizer state": True}
    assert passed(state()) == {"weights": True, "averages": True, "optimizer state": True}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("net.unet.w", "weights"),
        ("net.unet.b", "weights"),
        ("ema.unet.w", "averages"),
        ("optimizer.unet.w.exp_avg", "optimizer state"),
        ("optimizer.unet.w.step", "optimizer state"),
    ],
)
def test_one_changed_value_is_beyond_rounding(name: str, part: str) -> None:
    tensors = state(noise=1e-6)
    tensors[name].view(-1)[0] += 1e-3 * (1e-3 if "exp_avg" in name else 1) * (1000 if "step" in name else 1)
    assert [failed for failed, ok in passed(tensors).items() if not ok] == [part]
    assert deviations(tensors, state())[part].tensor == name


def test_what_is_lost_of_another_shape_or_not_finite_is_infinitely_far() -> None:
    for value in (None, torch.zeros(7), torch.full((8,), torch.nan)):
        tensors = state() | ({} if value is None else {"net.unet.b": value})
        if value is None:
            del tensors["net.unet.b"]
        assert deviations(tensors, state())["weights"] == Deviation(float("inf"), "net.unet.b")
        assert deviations(state(), tensors)["weights"].value == float("inf")
        assert not passed(tensors)["weights"]
    far = deviations(tensors, state())["weights"]
    check = check_deviation("weights", far, Deviation(1e-7, ""), "worlds 1 and 2", "fp32")
    assert json.loads(json.dumps(check.figures, allow_nan=False))["deviation"] is None


def test_every_bit_counts() -> None:
    assert differing_tensors(state(), state()) == []
    one = state()
    one["net.unet.w"][0, 0] = torch.nextafter(one["net.unet.w"][0, 0], torch.tensor(9.0))
    assert differing_tensors(one, state()) == ["net.unet.w"]
    assert differing_tensors({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)}) == ["a"]
    assert differing_tensors({"a": torch.tensor(torch.nan)}, {"a": torch.tensor(torch.nan)}) == []
    assert differing_tensors({"a": torch.zeros(1)}, {"a": torch.zeros(1, dtype=torch.int32)}) == ["a"]
    assert differing_tensors({"a": torch.zeros(1)}, {"b": torch.zeros(1)}) == ["a", "b"]


def test_a_tensor_in_several_shards_is_read_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    for i, (offset, rows) in enumerate(((0, whole[:1]), (1, whole[1:]))):
        tensors, places = {"net.a.w": rows.contiguous()}, {"net.a.w": {"saved_offsets": [offset, 0]}}
        if i:
            tensors["optimizer.a.w.step"], places["optimizer.a.w.step"] = torch.tensor(3.0), {"saved_offsets": []}
        about = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0"}
        save_file(tensors, tmp_path / f"shard-{i}.safetensors", metadata=about)
    read = read_tensors(Checkpoint(tmp_path, run_state(3), ""))
    assert read.keys() == {"net.a.w", "optimizer.a.w.step"}
    assert torch.equal(read["net.a.w"], whole)
    assert torch.equal(read["optimizer.a.w.step"], torch.tensor(3.0))
