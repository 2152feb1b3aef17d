"""Steps that teach nothing stop a run only in a row, and the message names the likely cause."""

from pathlib import Path

import pytest

from megatron_urpo.config import Config
from megatron_urpo.health import Health, TrainingStopped

CONFIG = Config.model_validate({"run_dir": "r", "model": {"path": "m"}, "data": {"train": ["t"]}, "max_empty_steps": 2})


def test_counts_restart_after_a_good_step() -> None:
    health = Health().after(0, {}).after(8, {"policy/not_finite": 1.0})
    assert health == Health(0, 1)
    assert health.after(8, {"policy/not_finite": 0.0}) == Health(0, 0)


@pytest.mark.parametrize(
    ("dropped", "part"),
    [
        ({"no_signal": 5, "verdict_truncated": 1}, "too hard, too easy"),
        ({"verdict_no_scores": 5}, "warm it up on preference data"),
        ({"prompt_too_long": 1}, "rollout.max_prompt_tokens"),
    ],
)
def test_empty_steps_name_the_cause(dropped: dict[str, int], part: str) -> None:
    health = Health().after(0, {})
    health.check(CONFIG, dropped)
    with pytest.raises(TrainingStopped, match=part):
        health.after(0, {}).check(CONFIG, dropped)


def test_three_steps_that_are_not_finite_stop() -> None:
    health = Health()
    for _ in range(2):
        health = health.after(8, {"policy/not_finite": 1.0})
        health.check(CONFIG, {})
    with pytest.raises(TrainingStopped, match=str(Path("r") / "batches")):
        health.after(8, {"policy/not_finite": 1.0}).check(CONFIG, {})
