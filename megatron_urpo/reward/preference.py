"""Reward of a scored preference prompt: how well the referee's scores order the responses.

Source: URPO's preference reward, where a tie on either side earns nothing for its pair:

    2 / (N (N-1)) * sum over i < j of sign((s_i - s_j)(g_i - g_j)),   sign(0) = 0

This is tau-a: the denominator counts every pair. A gold ranking with ties therefore caps the reward below 1; within a
group all completions share the gold, so the cap leaves advantages alone.
"""

from collections.abc import Sequence

from megatron_urpo.types import Verdict

UNREADABLE_REWARD = -1.0  # as bad as the reversed ranking: the format is learned here


def kendall_tau(scores: Sequence[float], gold: Sequence[float]) -> float:
    """Rank agreement in [-1, 1] of N >= 2 scores with the gold values; larger is better in both, any scale.

    Raises:
        ValueError: unequal lengths, or fewer than two responses.
    """
    if len(scores) != len(gold):
        raise ValueError(f"{len(scores)} scores for {len(gold)} gold values; give one for each response")
    if len(gold) < 2:
        raise ValueError(f"{len(gold)} responses have no pair to order; give 2 or more")
    total = sum(
        # Signs are multiplied and not differences: the product of two tiny differences can be 0.
        _sign(scores[i], scores[j]) * _sign(gold[i], gold[j])
        for j in range(len(gold))
        for i in range(j)
    )
    return 2 * total / (len(gold) * (len(gold) - 1))


def preference_reward(verdict: Verdict, gold: Sequence[float]) -> float:
    """Kendall's tau of a readable verdict; -1 for any other."""
    return kendall_tau(verdict.scores, gold) if verdict.outcome == "ok" else UNREADABLE_REWARD


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)
