"""Rewards of an instruction group: the scores that the policy itself gives its completions.

One vote counts as it is. Several votes are compared by rank, because a referee's scale drifts from ask to ask: each
readable vote is turned into ranks within itself, and the ranks are averaged.
"""

from collections.abc import Sequence

from megatron_urpo.reward.preference import kendall_tau
from megatron_urpo.types import Verdict


def self_scored_rewards(votes: Sequence[Verdict]) -> tuple[float, ...] | None:
    """One reward for each completion, larger is better; None when no vote is readable (the group is masked).

    `votes` holds the final verdict of every vote asked. With one vote the rewards are its scores; with several they
    are mean ranks in [1, N], even where just one of them is readable, so that the scale depends on the config alone.
    """
    readable = _readable(votes)
    if not readable:
        return None
    if len(votes) == 1:
        return readable[0]
    ranks = [tie_averaged_ranks(scores) for scores in readable]
    return tuple(sum(column) / len(ranks) for column in zip(*ranks, strict=True))


def vote_agreement(votes: Sequence[Verdict]) -> float | None:
    """Mean Kendall's tau over the pairs of readable votes, in [-1, 1]; None with fewer than two of them."""
    readable = _readable(votes)
    taus = [kendall_tau(a, b) for index, a in enumerate(readable) for b in readable[:index]]
    return sum(taus) / len(taus) if taus else None


def tie_averaged_ranks(scores: Sequence[float]) -> tuple[float, ...]:
    """Rank of each score, 1 for the smallest; equal scores share the mean of the ranks they take."""
    return tuple(
        sum(other < score for other in scores) + (sum(other == score for other in scores) + 1) / 2 for score in scores
    )


def _readable(votes: Sequence[Verdict]) -> list[tuple[float, ...]]:
    return [vote.scores for vote in votes if vote.outcome == "ok"]
