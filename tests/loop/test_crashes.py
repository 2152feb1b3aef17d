"""Killed anywhere equals unbroken: three moments of `scripts/crash_check.py`, of which one is within a save.

That script goes through all moments with many seeds; docs/measurements/resume.md has what it found.
"""

import signal
from pathlib import Path

import pytest

from tests.loop.crashes import VALUES, assert_same, end_at, moment_of
from tests.loop.runs import train
from tests.support.miniature import Miniature


@pytest.fixture(scope="module")
def unbroken(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(miniature, tmp_path_factory.mktemp("unbroken") / "run", **VALUES)


@pytest.mark.parametrize(
    ("seed", "number", "label"),
    [
        (1, signal.SIGKILL, "rollout"),
        (2, signal.SIGKILL, "update"),
        (5, signal.SIGKILL, "save: write"),
        (21, signal.SIGUSR1, "rollout"),
    ],
)
def test_ended_by_a_signal_and_resumed_equals_unbroken(
    miniature: Miniature, unbroken: Path, tmp_path: Path, seed: int, number: signal.Signals, label: str
) -> None:
    assert moment_of(seed)[0].label == label
    run = tmp_path / "run"
    code, place = end_at(miniature, run, seed, number)
    assert code == (85 if number == signal.SIGUSR1 else -number), place
    train(miniature, run, **VALUES)
    assert_same(run, unbroken)
