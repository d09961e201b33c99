"""The learned log-variance: it starts at 0 and learns the log of the mean square at each time."""

from __future__ import annotations

import torch

from diffpipe.nn.log_variance import LogVariance


def test_it_starts_at_zero() -> None:
    assert (LogVariance(1e-3)(torch.arange(0, 1000, 50)) == 0).all()


def test_it_learns_the_log_of_the_loss_at_each_time() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LogVariance(1e-3)
    t = torch.linspace(0, 1000, 64)
    loss = torch.exp(torch.sin(t / 200))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(600):
        u = net(t)
        optimizer.zero_grad()
        (loss / u.exp() + u).mean().backward()
        optimizer.step()
    assert (net(t) - loss.log()).abs().max() < 0.1
