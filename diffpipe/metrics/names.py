"""The metrics by name. Nothing here imports torch: `--help` lists the names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.nearest import did_you_mean


class Metric(NamedTuple):
    """kind: `fd` (Fréchet distance), `kid` (kernel distance) or one of NEIGHBOURS. extractor: the feature network."""

    kind: str
    extractor: str


# k of the k-th nearest neighbour, as in the papers that define the metrics (see metrics.prdc).
NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
KINDS = ("fd", "kid", *NEIGHBOURS)
METRICS = {
    "fd_efficientnet_lite0": Metric("fd", "efficientnet_lite0"),
    "kid_efficientnet_lite0": Metric("kid", "efficientnet_lite0"),
    "fid": Metric("fd", "inception"),
    "kid": Metric("kid", "inception"),
    **{f"{kind}_{name}": Metric(kind, name) for name in ("efficientnet_lite0", "inception") for kind in NEIGHBOURS},
}

KID_FACTOR = 1000
"""Kernel distances are shown in thousandths, as papers give them. Files, JSON and trackers have them as they are."""

DEFAULT_METRICS = ("fd_efficientnet_lite0", "kid_efficientnet_lite0")  # they work offline


def shown_name(name: str) -> str:
    """The name of a metric where people read its `shown_value`, such as `kid ×10³`."""
    return f"{name} ×10³" if _is_kid(name) else name


def shown_value(name: str, value: float) -> float:
    """The value that people read: a kernel distance times 1000, all others as they are."""
    return value * KID_FACTOR if _is_kid(name) else value


def is_frechet(name: str) -> bool:
    """Whether a score of this name is a Fréchet distance: the first one to look at, where a run has several."""
    return name == "fid" or name.startswith("fd_")


def first_score(names: Iterable[str]) -> str:
    """The one to show of several scores: the first Fréchet distance, else the first of all."""
    names = [*names]
    return next(filter(is_frechet, names), names[0])


def _is_kid(name: str) -> bool:
    return name == "kid" or name.startswith("kid_")


def parse_metric(name: str) -> Metric:
    """A metric by name; `fd_NAME` and the like take the feature network that a plug-in calls NAME.

    Raises UserError with the known names.
    """
    kind, _, extractor = name.partition("_")
    plugged_in = plugins.names("feature_networks")
    if kind in KINDS and extractor in plugged_in:
        return Metric(kind, extractor)
    if name not in METRICS:
        known = [*METRICS, *(f"{kind}_{network}" for network in plugged_in for kind in KINDS)]
        near = did_you_mean(name, known)
        raise UserError(
            f"unknown metric {name!r}; known: {', '.join(known)}; feature networks of your own come with --plugin "
            f"MODULE{f'; {near}' if near else ''}"
        )
    return METRICS[name]
