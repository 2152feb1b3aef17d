"""Rewards from the policy's own votes."""

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.reward.self_scored import self_scored_rewards, tie_averaged_ranks, vote_agreement
from megatron_urpo.types import Verdict

UNREADABLE = Verdict("no_scores")


def ok(*scores: float) -> Verdict:
    return Verdict("ok", scores)


def test_one_vote_is_taken_as_it_is() -> None:
    assert self_scored_rewards([ok(9.5, 2.0, 2.0)]) == (9.5, 2.0, 2.0)


def test_several_votes_average_their_ranks() -> None:
    # Ranks (2, 3, 1) and (2.5, 2.5, 1): the second referee's large numbers weigh no more than the first's.
    assert self_scored_rewards([ok(2.0, 3.0, 1.0), ok(100.0, 100.0, 50.0)]) == (2.25, 2.75, 1.0)


def test_unreadable_votes_are_left_out_and_the_scale_stays() -> None:
    assert self_scored_rewards([UNREADABLE, ok(7.0, 9.0)]) == (1.0, 2.0)
    assert self_scored_rewards([ok(2.0, 3.0), UNREADABLE, ok(5.0, 5.0)]) == (1.25, 1.75)


def test_nothing_readable_is_no_reward() -> None:
    assert self_scored_rewards([UNREADABLE]) is None
    assert self_scored_rewards([UNREADABLE, Verdict("truncated")]) is None
    assert self_scored_rewards([]) is None


def test_votes_of_different_length_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        self_scored_rewards([ok(1.0, 2.0), ok(1.0, 2.0, 3.0)])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=9))
def test_ranks_are_scipys(scores: list[float]) -> None:
    assert tie_averaged_ranks(scores) == tuple(scipy.stats.rankdata(scores, method="average"))


def test_agreement_by_hand() -> None:
    # Pairs: same order 1, reversed -1, reversed -1.
    assert vote_agreement([ok(1, 2, 3), ok(4, 5, 6), ok(3, 2, 1)]) == pytest.approx(-1 / 3)
    assert vote_agreement([ok(1, 2), UNREADABLE, ok(3, 9)]) == 1.0
    assert vote_agreement([ok(1, 2), UNREADABLE]) is None
    assert vote_agreement([]) is None
