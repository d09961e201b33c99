"""Each restart of a job has keys of its own in the store that outlives it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist

from diffpipe.train import rendezvous


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The launcher's store, in memory."""
    shared = dist.HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda method, timeout: iter([(shared, 1, 4)]))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return shared


def joined() -> dist.Store:
    store, rank, world = next(rendezvous._rendezvous("attempt://", timedelta(seconds=5)))
    assert (rank, world) == (1, 4)
    return store


def test_a_restarted_job_does_not_see_the_addresses_of_the_dead(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    joined().set("address", "of a dead process")
    assert joined().check(["address"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not joined().check(["address"])
    assert not store.check(["address"])


def test_without_the_launchers_store_the_count_does_not_matter(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    joined().set("address", "here")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert joined().get("address") == b"here"


def test_the_method_is_registered_once() -> None:
    assert rendezvous.init_method() == rendezvous.init_method() == "attempt://"
