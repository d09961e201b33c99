"""The key of a dependency."""

from __future__ import annotations

from diffpipe.dependency import Dependency


def test_the_key_of_a_dependency_is_that_of_the_config_that_names_it() -> None:
    codec = Dependency("codec", "stage.codec", "run", "runs/vae", None, "always")
    assert codec.key == "stage.codec.run"
