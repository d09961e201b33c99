"""When a hook is due."""

from __future__ import annotations

from diffpipe.train.hooks import Hook


def due(hook: Hook, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if hook.due(step, steps)]


def test_a_hook_is_due_every_so_many_steps_and_after_the_last_if_asked() -> None:
    assert due(Hook(3, lambda: None), 10) == [3, 6, 9]
    assert due(Hook(3, lambda: None, last=True), 10) == [3, 6, 9, 10]
    assert due(Hook(0, lambda: None), 10) == []
    assert due(Hook(0, lambda: None, last=True), 10) == [10]
    assert due(Hook(5, lambda: None, last=True), 10) == [5, 10]
