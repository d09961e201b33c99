"""The plot of the variational bound's terms by timestep."""

from __future__ import annotations

import torch

from diffpipe.evaluation.nll import NLL
from diffpipe.extras import from_extra

with from_extra("report"):
    from matplotlib.figure import Figure


def plot_vlb(nll: NLL, title: str) -> Figure:
    """The terms of a diffusion's bound over time, and what they add up to, at the paper's t of 1 to T.

    There t = 1 is L_0, and T + 1 stands for L_T. title: the run's.
    """
    likelihoods = nll.likelihoods
    course = likelihoods.vlb_by_timestep
    assert course is not None, "only a diffusion's bound has terms by timestep"
    prior, decoder = likelihoods.mean("L_T"), likelihoods.mean("L_0")
    first = [1, *(stratum.start + 1 for stratum in course.strata)]
    middle = [1, *((stratum.start + stratum.stop + 1) / 2 for stratum in course.strata)]
    lengths = [1, *(len(stratum) for stratum in course.strata)]
    terms = torch.cat([torch.tensor([decoder], dtype=torch.float64), course.terms])
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    terms_axes, total_axes = figure.subplots(1, 2)
    terms_axes.loglog(middle, terms / torch.tensor(lengths), ".-", markersize=4, linewidth=1)
    terms_axes.annotate("$L_0$", (1, decoder), xytext=(6, 0), textcoords="offset points")
    terms_axes.set(ylabel="bits/dim per timestep", title="each term $L_{t-1}$")
    last = course.strata[-1].stop + 1
    sums = torch.cat([terms, torch.tensor([prior], dtype=torch.float64)]).flip(0).cumsum(0).flip(0)
    total_axes.semilogx([*first, last], sums, ".-", markersize=4, linewidth=1)
    total_axes.set(ylabel="bits/dim", title="$L_T$ and the terms from $t$ to $T$, added up", ylim=(0, None))
    for axes in (terms_axes, total_axes):
        axes.set_xlabel("timestep $t$")
        axes.grid(visible=True, alpha=0.3)
    figure.suptitle(f"{title}: {nll.text('score')} ({likelihoods.kind})")
    return figure
