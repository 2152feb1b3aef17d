"""When a replay counts as the same."""

import math

from megatron_urpo.reporting.comparison import Pair, pairs, table, verdict

RECORDED = {
    "step": 3, "policy/loss": 1e-9, "policy/grad_norm": 200.0, "policy/clip_fraction": 0.01, "policy/not_finite": 0.0,
    "time/update": 5.0, "reward/mean": 1.0,
}  # fmt: skip


def compared(**changes: float) -> list[Pair]:
    replayed = {name: value for name, value in RECORDED.items() if name.startswith(("policy/", "time/"))}
    return pairs(RECORDED, replayed | {f"policy/{name}": value for name, value in changes.items()})


def test_the_metrics_that_both_have_without_times() -> None:
    assert [pair.name for pair in compared()] == [
        "policy/loss", "policy/grad_norm", "policy/clip_fraction", "policy/not_finite",
    ]  # fmt: skip


def test_without_a_tolerance_the_last_digit_of_any_metric_counts() -> None:
    assert verdict(compared(), 0) == "as recorded (to the last digit)"
    line = verdict(compared(clip_fraction=math.nextafter(0.01, 1)), 0)
    assert line == "differs from the record: policy/clip_fraction 1.7e-18 (asked for: to the last digit)"


def test_with_a_tolerance_the_loss_is_absolute_and_the_norm_relative() -> None:
    within = compared(loss=9e-5, grad_norm=200.019, clip_fraction=0.02)
    assert verdict(within, 1e-4) == "as recorded (loss and gradient norm within 0.0001)"
    for apart in (compared(loss=2e-4), compared(grad_norm=200.021), compared(not_finite=1.0)):
        assert verdict(apart, 1e-4).startswith("differs from the record: policy/")


def test_not_finite_equals_not_finite_alone() -> None:
    recorded = {"policy/loss": None, "policy/grad_norm": 2.0}
    both = pairs(recorded, {"policy/loss": math.nan, "policy/grad_norm": 2.0})
    assert verdict(both, 0) == "as recorded (to the last digit)"
    one = pairs(recorded, {"policy/loss": 0.5, "policy/grad_norm": math.inf})
    assert "policy/loss not finite, policy/grad_norm not finite" in verdict(one, 1e-4)


def test_the_table_shows_what_differs() -> None:
    lines = table(compared(grad_norm=202.0)).splitlines()
    assert lines[0].split() == ["metric", "recorded", "replayed", "difference"]
    assert lines[2].split() == ["policy/grad_norm", "200", "202", "1.0e-02", "relative"]
    assert lines[3].split() == ["policy/clip_fraction", "0.01", "0.01"]
