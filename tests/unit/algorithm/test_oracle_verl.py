"""Advantages, losses, importance weights and KL against verl's own, on the same numbers; skipped without verl.

verl is no dependency: docs/measurements/parity.md says how to run this in an environment of its own. Where its
definition is another one, the test says how one follows from the other and compares the rest.

Everything is in float64, and both sides add up about 100 numbers of size about 10: 1e-12 is far above their rounding.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from megatron_urpo.algorithm.advantages import group_advantages
from megatron_urpo.algorithm.corrections import sequence_mis, token_tis
from megatron_urpo.algorithm.losses import clipped_policy_loss, denominator, kl_to_reference
from tests.unit.algorithm.oracle_batch import CLIP_HIGH, CLIP_LOW, Batch, make_batch

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
corrections = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper", reason="verl is not installed")
workers = pytest.importorskip("verl.workers.config", reason="verl is not installed")

SEEDS = range(12)
AGGREGATION = {"tokens": "token-mean", "responses": "seq-mean-token-sum"}
NO_DUAL_CLIP = 1e9
CAP = 1.3
TOLERANCE = 1e-12


def gap(got: torch.Tensor, want: torch.Tensor, record: Any, name: str) -> float:
    """The largest difference, also written into the test's properties, from where it can be read with --junitxml."""
    largest = float((got - want).detach().abs().max())
    record(name, largest)
    return largest


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages(seed: int, record_property: Any) -> None:
    """verl divides by the sample's standard deviation, k = sqrt(n / (n - 1)) times the population's, plus eps.

    d / (k s + eps) = (1 / k) * d / (s + eps / k): ours with eps / k, divided by k. verl has no completion that is
    masked within a group, so it is given those that are left; and a group of one keeps its reward there while it has
    nothing to compare with here, so those groups are left out.
    """
    batch = make_batch(seed)
    eps = 1e-6
    members: dict[int, list[int]] = {}
    for i in batch.kept:
        members.setdefault(batch.groups[i], []).append(i)
    kept = [i for group in members.values() if len(group) > 1 for i in group]
    rewards = torch.zeros(len(kept), 3, dtype=torch.float64)
    rewards[:, -1] = torch.tensor([batch.rewards[i] for i in kept], dtype=torch.float64)
    want, _ = core_algos.compute_grpo_outcome_advantage(
        rewards, torch.ones_like(rewards), np.array([batch.groups[i] for i in kept]), epsilon=eps
    )
    got = []
    for group in members.values():
        if len(group) > 1:
            k = math.sqrt(len(group) / (len(group) - 1))
            values = [reward for i in group if (reward := batch.rewards[i]) is not None]
            got += [x / k for x in group_advantages(values, [0] * len(group), eps=eps / k)]
    assert gap(torch.tensor(got, dtype=torch.float64), want[:, 0], record_property, "advantages") < TOLERANCE


def advantages_of(batch: Batch) -> torch.Tensor:
    return torch.randn(len(batch.kept), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(
    batch: Batch, new_T: torch.Tensor, weights_T: torch.Tensor, normalization: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, stats = clipped_policy_loss(
        new_T,
        batch.flat(batch.old),
        batch.each_token(advantages_of(batch).tolist()),
        weights_T,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
    )
    return loss / denominator([len(batch.new[i]) for i in batch.kept], normalization), stats  # type: ignore[arg-type]


def settings(dual_clip: float) -> Any:
    clip = {"clip_ratio_low": CLIP_LOW, "clip_ratio_high": CLIP_HIGH, "clip_ratio_c": dual_clip}
    return workers.ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, **clip)


def theirs(
    batch: Batch, new: torch.Tensor, weights: torch.Tensor | None, mode: str
) -> tuple[torch.Tensor, dict[str, float]]:
    advantages = torch.zeros(len(batch.rewards), 1, dtype=torch.float64)
    advantages[batch.kept, 0] = advantages_of(batch)
    result: tuple[torch.Tensor, dict[str, float]] = core_algos.compute_policy_loss_vanilla(
        batch.padded(batch.old), new, advantages.expand_as(new), batch.mask, mode, settings(NO_DUAL_CLIP), weights
    )
    return result


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("normalization", AGGREGATION)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradient(seed: int, normalization: str, weighed: bool, record_property: Any) -> None:
    """Asymmetric clip, masked completions, with and without importance weights; verl's dual clip is out of reach."""
    batch = make_batch(seed)
    flat, padded = batch.flat(batch.new).requires_grad_(), batch.padded(batch.new).requires_grad_()
    weights_T, weights = torch.ones_like(flat), None
    if weighed:
        weights_T = token_tis(batch.flat(batch.old), batch.flat(batch.rollout), CAP)
        weights = batch.mask.clone()
        weights[batch.mask > 0] = weights_T
    loss, stats = ours(batch, flat, weights_T, normalization)
    want, metrics = theirs(batch, padded, weights, AGGREGATION[normalization])
    assert gap(loss, want, record_property, "loss") < TOLERANCE
    (got_grad,), (want_grad,) = torch.autograd.grad(loss, flat), torch.autograd.grad(want, padded)
    assert gap(got_grad, want_grad[batch.mask > 0], record_property, "gradient") < TOLERANCE
    assert torch.equal(want_grad[batch.mask == 0], torch.zeros_like(want_grad[batch.mask == 0]))
    # verl adds 1e-8 to the number of tokens that a mean is divided by.
    tokens = float(stats["tokens"]) + 1e-8
    assert metrics["actor/pg_clipfrac"] == pytest.approx(float(stats["clipped_tokens"]) / tokens, abs=TOLERANCE)
    assert metrics["actor/ppo_kl"] == pytest.approx(float(stats["kl_k1_sum"]) / tokens, abs=TOLERANCE)
    assert 0 < stats["clipped_tokens"] < stats["tokens"]


def test_only_the_dual_clip_differs() -> None:
    """A bad token far above the old policy: verl's default stops at three times the advantage, here nothing does."""

    def losses(ratio: float) -> list[float]:
        new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
        old, bad, one = torch.zeros_like(new), -torch.ones_like(new), torch.ones_like(new)
        mine, _ = clipped_policy_loss(new, old, bad, one, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
        verl = [
            core_algos.compute_policy_loss_vanilla(old, new, bad, one, "token-mean", settings(c))[0] for c in (3, 9)
        ]
        return [float(mine), *map(float, verl)]

    assert losses(2.9) == pytest.approx([2.9, 2.9, 2.9])
    assert losses(5.0) == pytest.approx([5.0, 3.0, 5.0])


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_to_the_reference(seed: int, record_property: Any) -> None:
    """verl also cuts the estimate off at 10; here no token comes near that."""
    batch = make_batch(seed)
    new = batch.flat(batch.new).requires_grad_()
    reference = batch.flat(batch.reference)
    got = kl_to_reference(new, reference)
    want = core_algos.kl_penalty(new, reference, "low_var_kl")
    assert want.max() < 10
    assert gap(got, want, record_property, "kl") < TOLERANCE
    gradients = [torch.autograd.grad(value.sum(), new)[0] for value in (got, want)]
    assert gap(*gradients, record_property, "kl gradient") < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_importance_weights(seed: int, record_property: Any) -> None:
    """verl's weights within bounds ("low_high") have a lower one too; it is put where no weight can be."""
    batch = make_batch(seed)
    log_ratio = (batch.padded(batch.old) - batch.padded(batch.rollout)) * batch.mask
    old, rollout = batch.flat(batch.old), batch.flat(batch.rollout)
    tokens, _ = corrections.compute_rollout_correction_weights(log_ratio, batch.mask, "token", CAP)
    sequences, _ = corrections.compute_rollout_correction_weights(log_ratio, batch.mask, "sequence", f"1e-9_{CAP}")
    index = batch.each_token([float(k) for k in range(len(batch.kept))])
    ours_sequences = sequence_mis(old, rollout, index, CAP)
    assert gap(token_tis(old, rollout, CAP), tokens[batch.mask > 0], record_property, "tokens") < TOLERANCE
    assert gap(ours_sequences, sequences[batch.mask > 0], record_property, "sequences") < TOLERANCE
    assert 0 < (ours_sequences == 0).sum() < len(ours_sequences)
