"""Kendall's tau: by hand, against brute force over pairs, against scipy where there are no ties."""

import itertools
import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.reward.preference import kendall_tau, preference_reward
from megatron_urpo.types import VERDICT_OUTCOMES, Verdict


@pytest.mark.parametrize(
    ("scores", "gold", "tau"),
    [
        ([2, 1], [1, 0], 1.0),
        ([1, 2], [1, 0], -1.0),
        ([1, 1], [1, 0], 0.0),
        ([1, 2], [3, 3], 0.0),
        ([3, 2, 1], [9, 5, 1], 1.0),
        ([3, 1, 2], [9, 5, 1], 1 / 3),  # pairs: right, right, wrong
        ([3, 2, 2], [9, 5, 1], 2 / 3),  # pairs: right, right, tied
        ([4, 3, 2, 1], [1, 2, 3, 4], -1.0),
        ([4, 3, 2, 1], [2, 2, 1, 1], 4 / 6),  # two gold ties of six pairs
        ([7.5, -2.0], [-1.0, -2.0], 1.0),
    ],
)
def test_by_hand(scores: list[float], gold: list[float], tau: float) -> None:
    assert kendall_tau(scores, gold) == pytest.approx(tau, abs=1e-15)


def test_differences_too_small_to_multiply_still_count() -> None:
    assert kendall_tau([5e-324, 0.0], [5e-324, 0.0]) == 1.0


values = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0, 7.25])
pairs = st.integers(2, 9).flatmap(
    lambda n: st.tuples(st.lists(values, min_size=n, max_size=n), st.lists(values, min_size=n, max_size=n))
)


@settings(deadline=None)
@given(pairs)
def test_brute_force_with_ties(pair: tuple[list[float], list[float]]) -> None:
    scores, gold = pair
    products = [
        math.copysign(1, s) * math.copysign(1, g) if (s := a - b) and (g := c - d) else 0
        for (a, c), (b, d) in itertools.combinations(zip(scores, gold, strict=True), 2)
    ]
    assert kendall_tau(scores, gold) == pytest.approx(sum(products) / len(products))


@settings(deadline=None)
@given(st.integers(2, 12).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n)))))
def test_scipy_without_ties(pair: tuple[list[int], list[int]]) -> None:
    assert kendall_tau(*pair) == pytest.approx(scipy.stats.kendalltau(*pair, variant="b").statistic)


@settings(deadline=None)
@given(pairs)
def test_symmetries(pair: tuple[list[float], list[float]]) -> None:
    scores, gold = pair
    tau = kendall_tau(scores, gold)
    assert -1 <= tau <= 1
    assert kendall_tau(gold, scores) == tau
    assert kendall_tau([-score for score in scores], gold) == -tau
    assert kendall_tau([2 * score + 1 for score in scores], gold) == tau
    assert kendall_tau(scores[::-1], gold[::-1]) == tau


@pytest.mark.parametrize(
    ("scores", "gold", "message"), [([1], [1], "2 or more"), ([1, 2], [1, 2, 3], "2 scores for 3")]
)
def test_refuses(scores: list[float], gold: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kendall_tau(scores, gold)


def test_only_a_readable_verdict_earns_more_than_minus_one() -> None:
    assert preference_reward(Verdict("ok", (3.0, 1.0, 2.0)), (9.0, 5.0, 1.0)) == pytest.approx(1 / 3)
    for outcome in VERDICT_OUTCOMES:
        if outcome != "ok":
            assert preference_reward(Verdict(outcome), (9.0, 5.0, 1.0)) == -1.0
