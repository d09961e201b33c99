"""Metrics by name: the known ones, a plug-in's, and the message for an unknown one."""

from __future__ import annotations

import pytest

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.metrics.names import NEIGHBOURS, first_score, parse_metric, shown_name, shown_value


def test_metric_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins._parts, "feature_networks", {"a": object})
    assert parse_metric("fid") == ("fd", "inception")
    assert parse_metric("kid") == ("kid", "inception")
    assert parse_metric("fd_efficientnet_lite0") == ("fd", "efficientnet_lite0")
    assert parse_metric("kid_a") == ("kid", "a")
    with pytest.raises(
        UserError, match=r"unknown metric 'fdi'; known: fd_efficientnet_lite0, .*fid, kid.*; did you mean fid"
    ):
        parse_metric("fdi")


def test_names_with_both_feature_networks_are_known() -> None:
    for kind in NEIGHBOURS:
        assert parse_metric(f"{kind}_efficientnet_lite0") == (kind, "efficientnet_lite0")
        assert parse_metric(f"{kind}_inception") == (kind, "inception")


def test_people_read_kernel_distances_in_thousandths_and_their_names_say_so() -> None:
    for name in ("kid", "kid_efficientnet_lite0"):
        assert (shown_name(name), shown_value(name, 0.268)) == (f"{name} ×10³", 268)
    for name in ("fid", "nll", "kidney"):
        assert (shown_name(name), shown_value(name, 0.268)) == (name, 0.268)


def test_of_several_scores_a_frechet_distance_is_shown() -> None:
    assert first_score(["kid", "fid", "fd_a"]) == "fid"
    assert first_score(["recall_inception", "nll"]) == "recall_inception"
