"""State dicts under other names: one to one, and three of theirs that are one of ours."""

from __future__ import annotations

import torch

from diffpipe.experiment.interop.renaming import to_ours, to_theirs

NAMES = {"stem": ("conv_in",), "attend.qkv": ("to_q", "to_k", "to_v"), "skip": ("shortcut",)}


def test_tensors_are_split_and_stacked_in_order() -> None:
    ours = {"stem.weight": torch.ones(2), "attend.qkv.weight": torch.arange(6.0), "attend.qkv.bias": torch.arange(3.0)}
    theirs = to_theirs(ours, NAMES)
    assert sorted(theirs) == ["conv_in.weight", *(f"to_{part}.{leaf}" for part in "kqv" for leaf in ("bias", "weight"))]
    assert theirs["to_k.weight"].tolist() == [2, 3]
    again = to_ours(theirs, NAMES)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_tensors_of_other_modules_are_left_out() -> None:
    assert to_ours({"elsewhere.weight": torch.ones(1)}, NAMES) == {}
