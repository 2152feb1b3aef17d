"""One training step of the policy: several epochs of clipped policy gradients over a collected batch."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from megatron_urpo.algorithm.losses import clipped_policy_loss, denominator
from megatron_urpo.algorithm.microbatches import plan_microbatches
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.packing import PackedBatch, TokenSequence, pack
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.policy import Policy
from megatron_urpo.types import Sample


@dataclass
class MiniBatch:
    """What one optimizer step learns from: this rank's micro-batches, and the count that the whole loss divides by."""

    batches: list[PackedBatch]
    denominator: int
    num_tokens: int


def update(policy: Policy, samples: Sequence[Sample], loss: LossConfig) -> dict[str, float]:
    """Trains on `samples` (the same on every rank) and returns the step's metrics (the same on every rank).

    The learning rate depends on the number of updates asked for, not on how many had a signal: mini-batches that are
    missing because groups were dropped still advance the schedule. A gradient that is not finite ends the step without
    an update of its own: `policy/not_finite` is 1.
    """
    start = time.perf_counter()
    minibatches = [
        _prepare(policy, part, loss, with_old=loss.old_logprobs == "rollout")
        for part in _split_by_group(samples, loss.minibatches)
    ]
    # With one mini-batch the first epoch starts from the weights that wrote the samples: its own pass gives the old
    # log-probabilities. With more, the weights have moved when the second is reached, so they are computed beforehand.
    if loss.old_logprobs == "recompute" and len(minibatches) > 1:
        for minibatch in minibatches:
            for batch, logprobs_R in zip(minibatch.batches, policy.logprobs(minibatch.batches), strict=False):
                batch.values["old_logprobs"] = logprobs_R
    recomputed = time.perf_counter()
    sums: dict[str, float] = {}
    grad_norms: list[float] = []
    for minibatch in minibatches * loss.epochs:
        part = policy.forward_backward(minibatch.batches, GrpoLoss(loss, minibatch.denominator))
        grad_norms.append(policy.step())
        for name, value in part.items():
            sums[name] = sums.get(name, 0.0) + value
        if not math.isfinite(grad_norms[-1]):
            break
    policy.skip_updates(loss.epochs * loss.minibatches - len(grad_norms))
    if not minibatches:
        return {"policy/lr": policy.learning_rate, "tokens/train": 0.0, "time/logprobs": 0.0, "time/update": 0.0}
    return {
        **_policy_metrics(policy.parallel, sums, len(grad_norms)),
        **_mismatch(policy.parallel, [batch for minibatch in minibatches for batch in minibatch.batches]),
        **_token_metrics(policy.parallel, minibatches),
        "policy/grad_norm": sum(grad_norms) / len(grad_norms),
        "policy/not_finite": float(not math.isfinite(grad_norms[-1])),
        "policy/lr": policy.learning_rate,
        "time/logprobs": recomputed - start,
        "time/update": time.perf_counter() - recomputed,
    }


class GrpoLoss:
    """The clipped objective of one mini-batch as a `policy.Loss`; `count` is what its whole sum is divided by.

    A micro-batch without old log-probabilities is met for the first time, at the weights that they are asked at: this
    pass's own are kept for the later epochs.
    """

    def __init__(self, config: LossConfig, count: int):
        self.config = config
        self.count = count

    def __call__(self, logprobs_R: Tensor, entropy_R: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        old_R = batch.values.setdefault("old_logprobs", logprobs_R.detach())
        value, stats = clipped_policy_loss(
            logprobs_R,
            old_R,
            batch.values["advantages"],
            torch.ones_like(logprobs_R),
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
        )
        value = value / self.count
        named = {name: float(x) for name, x in stats.items()}
        return value, {**named, "loss": float(value.detach()), "entropy": float(entropy_R.detach().sum())}


def _split_by_group(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """At most `count` parts of whole groups, in order, with about equally many groups."""
    ids = list(dict.fromkeys(sample.group for sample in samples))
    bounds = [round(len(ids) * k / count) for k in range(count + 1)]
    parts = [set(ids[a:b]) for a, b in pairwise(bounds) if b > a]
    return [[sample for sample in samples if sample.group in part] for part in parts]


def _prepare(policy: Policy, samples: Sequence[Sample], loss: LossConfig, with_old: bool) -> MiniBatch:
    names = ["advantages", "rollout_logprobs", *(["old_logprobs"] if with_old else [])]
    sequences = [_sequence(sample) for sample in samples]
    plan = plan_microbatches(
        [sequence.num_input_tokens for sequence in sequences],
        max_tokens=loss.max_tokens_per_micro_batch - (policy.alignment - 1),
        num_ranks=policy.parallel.data,
    )
    return MiniBatch(
        batches=[
            pack([sequences[index] for index in indices], policy.alignment, policy.parallel.device, names)
            for indices in plan[policy.parallel.data_rank]
        ],
        denominator=denominator([len(sample.completion_ids) for sample in samples], loss.normalization),
        num_tokens=sum(sequence.num_input_tokens for sequence in sequences),
    )


def _sequence(sample: Sample) -> TokenSequence:
    values: dict[str, Sequence[float]] = {
        "advantages": [sample.advantage] * len(sample.completion_ids),
        "rollout_logprobs": sample.rollout_logprobs,
        "old_logprobs": sample.rollout_logprobs,
    }
    return TokenSequence((*sample.prompt_ids, *sample.completion_ids), len(sample.prompt_ids), values)


def _policy_metrics(parallel: Parallel, sums: dict[str, float], num_updates: int) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parallel.gather(sums):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    tokens = total["tokens"]
    return {
        "policy/loss": total["loss"] / num_updates,
        "policy/clip_fraction": total["clipped_tokens"] / tokens,
        "policy/ratio_mean": total["ratio_sum"] / tokens,
        "policy/kl_old": total["kl_k3_sum"] / tokens,
        "policy/entropy": total["entropy"] / tokens,
    }


def _mismatch(parallel: Parallel, batches: Sequence[PackedBatch]) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's, at the weights that wrote the samples."""
    count, kl, largest = 0, 0.0, 0.0
    for batch in batches:
        if "old_logprobs" in batch.values and batch.targets_R.numel() and parallel.tensor_rank == 0:
            gap_R = (batch.values["old_logprobs"] - batch.values["rollout_logprobs"]).double()
            count += gap_R.numel()
            kl += float((gap_R.exp() - 1 - gap_R).sum())
            largest = max(largest, float(gap_R.abs().max()))
    parts = parallel.gather((count, kl, largest))
    tokens = sum(part[0] for part in parts)
    return {"mismatch/kl": sum(part[1] for part in parts) / tokens, "mismatch/max": max(part[2] for part in parts)}


def _token_metrics(parallel: Parallel, minibatches: Sequence[MiniBatch]) -> dict[str, float]:
    batches = [batch for minibatch in minibatches for batch in minibatch.batches]
    padding = sum(batch.num_padding for batch in batches)
    computed = sum(batch.tokens_1T.numel() for batch in batches)
    model_parallel = parallel.tensor * parallel.pipeline
    everywhere = parallel.gather((padding, computed))
    return {
        "tokens/train": float(sum(minibatch.num_tokens for minibatch in minibatches)),
        "tokens/padding_fraction": sum(p for p, _ in everywhere) / sum(c for _, c in everywhere),
        "batch/micro_batches": float(len(batches) * len(everywhere) // model_parallel),
    }
