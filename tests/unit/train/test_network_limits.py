"""Limits of networks that are being built: what is too large is refused before it takes time or memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train.network_limits import limited_networks

TOO_LARGE: dict[str, Callable[[], object]] = {
    "a billion blocks": lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)),
    "a width that no tensor has": lambda: nn.Linear(8, 2**62),
    "a width that is no integer of a machine": lambda: nn.Linear(8, 10**40),
    "a table that is not stored": lambda: torch.ones(2**41),
    "a range": lambda: torch.arange(10**40),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("build", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_too_large_is_refused(build: Callable[[], object], device: str) -> None:
    with pytest.raises(UserError, match="too large"), torch.device(device), limited_networks("too large"):
        build()


def test_all_values_and_tensors_count_and_elsewhere_is_no_limit() -> None:
    with limited_networks("too large", values=16, tensors=3):
        nn.Linear(7, 2)
        torch.zeros(1 << 20)  # a table that is not stored
    for build in (lambda: nn.Linear(8, 2), lambda: [nn.Linear(1, 1), nn.Linear(1, 1)]):
        with pytest.raises(UserError, match="too large"), limited_networks("too large", values=16, tensors=3):
            build()
    nn.Linear(8, 2)


def test_another_error_stays_as_it_is() -> None:
    with pytest.raises(TypeError, match="missing"), limited_networks("too large"):
        nn.Linear(1)  # pyright: ignore[reportCallIssue]
