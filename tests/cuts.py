"""Trainings that are cut off and begun again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensbench.models.optimization import Descent


def cut_and_begun_again(
    train: Callable[[Path], object], out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 5
) -> list[int]:
    """Interrupt a training in one of its steps and start it again; return the steps that were begun, in their order.

    Args:
        train: trains into a folder.
        out: the folder; it is not there after the interruption.
        monkeypatch: what it changes is undone.
        at: the number of that step, from 1 on.
    """
    steps: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr("lensbench.models.optimization.SAVE_EVERY_SECONDS", 0.0)
        once = Descent.step

        def cut(self: Any, number: int, losses: Any) -> None:
            steps.append(number)
            if len(steps) == at:
                raise KeyboardInterrupt
            once(self, number, losses)

        patched.setattr(Descent, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            train(out)
        assert not out.exists()
        train(out)
    return steps
