"""The plot of a bound: per timestep, and added up to the whole bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.evaluation.likelihood import Likelihoods, VLBByTimestep
from diffpipe.evaluation.nll import NLL
from diffpipe.metrics.protocol import Result
from diffpipe.report.vlb_plot import plot_vlb


def test_terms_are_per_timestep_and_their_sum_is_the_bound() -> None:
    # T = 10 in strata of 1, 3 and 5 timesteps, which start at t = 2; L_0 is the decoder's.
    strata = [range(1, 2), range(2, 5), range(5, 10)]
    bound = VLBByTimestep(strata, torch.tensor([0.5, 0.6, 1.0], dtype=torch.float64))
    values = {"score": [4.0, 4.22], "L_T": [0.0, 0.02], "L_0": [1.0, 3.0]}
    tensors = {name: torch.tensor(pair, dtype=torch.float64) for name, pair in values.items()}
    likelihoods = Likelihoods(tensors, "bits/dim", "bound", bound)
    figure = plot_vlb(NLL(likelihoods, Result({}, {}, {})), "ddpm, step 10")
    terms, total = figure.axes
    x, y = terms.get_lines()[0].get_data()
    assert np.asarray(x).tolist() == [1, 2, 4, 8]
    assert np.asarray(y) == pytest.approx([2.0, 0.5, 0.2, 0.2])
    x, y = total.get_lines()[0].get_data()
    assert np.asarray(x).tolist() == [1, 2, 3, 6, 11]
    assert np.asarray(y) == pytest.approx([4.11, 2.11, 1.61, 1.01, 0.01])
    assert figure.get_suptitle() == "ddpm, step 10: 4.110 ± 0.110 bits/dim (bound)"
