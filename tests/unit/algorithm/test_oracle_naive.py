"""From rewards to the gradient of the loss, against plain Python over single tokens.

Everything is in float64, and both sides add up about 100 numbers of size about 10: 1e-12 is far above their rounding.
"""

import math

import pytest
import torch

from megatron_urpo.algorithm.advantages import group_advantages
from megatron_urpo.algorithm.losses import clipped_policy_loss, denominator
from tests.unit.algorithm.oracle_batch import CLIP_HIGH, CLIP_LOW, Batch, make_batch

SEEDS = range(12)
NORMALIZATIONS = ("tokens", "responses")


def naive_advantage(batch: Batch, i: int) -> float:
    """Of completion i, which is not masked, among those of its group that are not."""
    group = [r for r, g in zip(batch.rewards, batch.groups, strict=True) if g == batch.groups[i] and r is not None]
    mean = sum(group) / len(group)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in group) / len(group))
    reward = batch.rewards[i]
    assert reward is not None
    return (reward - mean) / (std + 1e-6)


def naive_loss(batch: Batch, new: list[list[float]], normalization: str) -> float:
    total, tokens, responses = 0.0, 0, 0
    for i, reward in enumerate(batch.rewards):
        if reward is None:
            continue
        responses += 1
        for t in range(len(new[i])):
            tokens += 1
            ratio = math.exp(new[i][t] - batch.old[i][t])
            if ratio < 1 - CLIP_LOW:
                bounded = 1 - CLIP_LOW
            elif ratio > 1 + CLIP_HIGH:
                bounded = 1 + CLIP_HIGH
            else:
                bounded = ratio
            advantage = naive_advantage(batch, i)
            total -= min(ratio * advantage, bounded * advantage)
    return total / (tokens if normalization == "tokens" else responses)


def naive_gradient(batch: Batch, new: list[list[float]], normalization: str) -> list[list[float]]:
    """Central differences; h = 1e-5 leaves an error of about h^2 = 1e-10 from curvature, 1e-11 from rounding."""
    h = 1e-5
    gradient = [[0.0] * len(row) for row in new]
    for i, row in enumerate(new):
        for t, value in enumerate(row):
            row[t] = value + h
            above = naive_loss(batch, new, normalization)
            row[t] = value - h
            gradient[i][t] = (above - naive_loss(batch, new, normalization)) / (2 * h)
            row[t] = value
    return gradient


def our_loss(batch: Batch, new_T: torch.Tensor, normalization: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rewards = [reward for reward in batch.rewards if reward is not None]
    advantages = group_advantages(rewards, [batch.groups[i] for i in batch.kept])
    loss, stats = clipped_policy_loss(
        new_T,
        batch.flat(batch.old),
        batch.each_token(advantages),
        torch.ones_like(new_T),
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
    )
    return loss / denominator([len(batch.new[i]) for i in batch.kept], normalization), stats  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages(seed: int) -> None:
    batch = make_batch(seed)
    rewards = [reward for reward in batch.rewards if reward is not None]
    got = group_advantages(rewards, [batch.groups[i] for i in batch.kept])
    assert got == pytest.approx([naive_advantage(batch, i) for i in batch.kept], abs=1e-12)
    assert len(got) < len(batch.rewards)  # some are masked, or this shows less than it says


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradient(seed: int, normalization: str) -> None:
    batch = make_batch(seed)
    new_T = batch.flat(batch.new).requires_grad_()
    loss, stats = our_loss(batch, new_T, normalization)
    assert loss.item() == pytest.approx(naive_loss(batch, batch.new, normalization), abs=1e-12)
    want = batch.flat(naive_gradient(batch, batch.new, normalization))
    (got,) = torch.autograd.grad(loss, new_T)
    assert (got - want).abs().max() < 1e-8
    assert 0 < stats["clipped_tokens"] < stats["tokens"]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_epochs_leave_the_first_ratio_of_one(normalization: str) -> None:
    """Four steps on the log-probabilities themselves: the first meets ratios of 1, the last ones what is clipped."""
    batch = make_batch(100)
    lr = 8.0 if normalization == "tokens" else 1.2  # the largest moves are then about 0.1 a step
    ours, theirs = batch.flat(batch.old), [list(row) for row in batch.old]
    clipped = []
    for _ in range(4):
        ours.requires_grad_()
        loss, stats = our_loss(batch, ours, normalization)
        clipped.append(int(stats["clipped_tokens"]))
        assert loss.item() == pytest.approx(naive_loss(batch, theirs, normalization), abs=1e-8)
        (gradient,) = torch.autograd.grad(loss, ours)
        ours = (ours - lr * gradient).detach()
        slopes = naive_gradient(batch, theirs, normalization)
        theirs = [
            [value - lr * slope for value, slope in zip(*pair, strict=True)]
            for pair in zip(theirs, slopes, strict=True)
        ]
        assert (ours - batch.flat(theirs)).abs().max() < 1e-7
    assert clipped[0] == 0
    assert clipped[-1] > 5
