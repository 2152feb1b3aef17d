"""Exact ratios: short sequences by hand, then the bound that every prefix keeps."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.data.mixture import exact_shares, next_task
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
