"""Exact ratios: short sequences by hand, then the bound that every prefix keeps."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.data.mixture import exact_shares, next_source, next_task
from megatron_urpo.types import TASKS, Task


def sequence(weights: dict[Task, float], length: int) -> list[Task]:
    counts: Counter[Task] = Counter()
    tasks = []
    for _ in range(length):
        tasks.append(next_task(counts, weights))
        counts[tasks[-1]] += 1
    return tasks


def initials(weights: dict[Task, float], length: int) -> str:
    return "".join(task[0] for task in sequence(weights, length))


def test_by_hand() -> None:
    assert initials({"instruction": 1, "preference": 1, "reasoning": 1}, 7) == "rpirpir"
    assert initials({"preference": 1, "reasoning": 1}, 4) == "rprp"
    # 2:1. Residuals before each prompt, r and p: 2/3 1/3 | 1/3 2/3 | 1 0
    assert initials({"reasoning": 2, "preference": 1}, 6) == "rprrpr"
    assert initials({"instruction": 0.1}, 3) == "iii"
    assert initials({"reasoning": 0, "instruction": 3}, 3) == "iii"


def test_weights_are_the_decimals_that_the_user_wrote() -> None:
    # In binary 0.3 is below three tenths, and the tie between equal residuals would go the other way.
    weights: dict[Task, float] = {"reasoning": 0.1, "preference": 0.3}
    assert exact_shares(weights) == {"reasoning": Fraction(1, 4), "preference": Fraction(3, 4)}
    assert initials(weights, 12) == initials({"reasoning": 1, "preference": 3}, 12)


def test_no_positive_weight() -> None:
    with pytest.raises(ValueError, match="positive weight"):
        next_task({}, {"reasoning": 0.0})


ratios = st.dictionaries(st.sampled_from(TASKS), st.integers(0, 1000).map(lambda n: n / 100), min_size=1).filter(
    lambda weights: sum(weights.values()) > 0
)


@settings(deadline=None)
@given(ratios, st.integers(1, 200))
def test_every_prefix_differs_by_less_than_one_prompt(weights: dict[Task, float], length: int) -> None:
    shares = exact_shares(weights)
    counts: Counter[Task] = Counter()
    for number, task in enumerate(sequence(weights, length), start=1):
        counts[task] += 1
        assert set(counts) <= set(shares)
        for name, share in shares.items():
            assert abs(counts[name] - share * number) < 1


weights = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@settings(deadline=None)
@given(weights, st.integers(1, 150))
def test_any_number_of_sources_stays_within_one_prompt(parts: list[int], length: int) -> None:
    shares = {f"s{i}": Fraction(part, sum(parts)) for i, part in enumerate(parts)}
    counts = dict.fromkeys(shares, 0)
    for number in range(1, length + 1):
        counts[next_source(counts, shares)] += 1
        for name, share in shares.items():
            assert abs(counts[name] - share * number) < 1


def test_largest_residuals_would_not_do_for_many_sources() -> None:
    """Why sources have a rule of their own."""
    shares = {f"s{i}": Fraction(part, 49) for i, part in enumerate([3, 5, 20, 20, 1])}
    counts = dict.fromkeys(shares, 0)
    for number in range(1, 28):
        name = max(shares, key=lambda name: shares[name] * number - counts[name])
        counts[name] += 1
    assert max(abs(shares[name] * 27 - counts[name]) for name in shares) == Fraction(50, 49)
