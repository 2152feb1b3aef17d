"""One training step of the policy: several epochs of clipped policy gradients over a collected batch."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_urpo.algorithm.losses import denominator
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.objective import GrpoLoss
from megatron_urpo.policy.packing import PackedBatch, TokenSequence
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.update_metrics import mismatch_metrics, policy_metrics, task_shares, token_metrics
from megatron_urpo.types import TASKS, Sample

VALUES = ("advantages", "rollout_logprobs", "task", "sequence")


@dataclass
class MiniBatch:
    """What one optimizer step learns from: this rank's micro-batches, and the count that the whole loss divides by."""

    batches: list[PackedBatch]
    denominator: int
    num_tokens: int


def update(
    policy: Policy, samples: Sequence[Sample], loss: LossConfig, measure_tasks: bool = False
) -> dict[str, float]:
    """Trains on `samples` (the same on every rank) and returns the step's metrics (the same on every rank).

    The learning rate depends on the number of updates asked for, not on how many had a signal: mini-batches that are
    missing because groups were dropped still advance the schedule. A gradient that is not finite ends the step without
    an update of its own: `policy/not_finite` is 1. `measure_tasks` adds `policy/grad_norm/<task>`, for one more pass.
    """
    start = time.perf_counter()
    if not samples:
        policy.skip_updates(loss.epochs * loss.minibatches)
        return {"policy/lr": policy.learning_rate, "tokens/train": 0.0, "time/logprobs": 0.0, "time/update": 0.0}
    by_task = task_grad_norms(policy, samples, loss) if measure_tasks else {}
    minibatches = [prepare(policy, part, loss) for part in _split_by_group(samples, loss.minibatches)]
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
    batches = [batch for minibatch in minibatches for batch in minibatch.batches]
    return {
        **policy_metrics(policy.parallel, sums, len(grad_norms)),
        **mismatch_metrics(policy.parallel, *_measured(minibatches, loss)),
        **token_metrics(policy.parallel, batches, sum(minibatch.num_tokens for minibatch in minibatches)),
        **task_shares(samples),
        **by_task,
        "policy/grad_norm": sum(grad_norms) / len(grad_norms),
        "policy/not_finite": float(not math.isfinite(grad_norms[-1])),
        "policy/lr": policy.learning_rate,
        "time/logprobs": recomputed - start,
        "time/update": time.perf_counter() - recomputed,
    }


def measure_mismatch(policy: Policy, samples: Sequence[Sample], loss: LossConfig) -> dict[str, float]:
    """`mismatch/...` of samples at the present weights; nothing is learned from them."""
    batches = prepare(policy, samples, loss).batches
    for batch, logprobs_R in zip(batches, policy.logprobs(batches), strict=False):
        batch.values["trainer_logprobs"] = logprobs_R
    return mismatch_metrics(policy.parallel, batches, "trainer_logprobs")


def task_grad_norms(policy: Policy, samples: Sequence[Sample], loss: LossConfig) -> dict[str, float]:
    """Norm of each task's part of the first gradient: the whole batch's is the sum of these parts, as vectors.

    A task whose norm is many times another's decides where the model goes, whatever the other's share of tokens.
    Nothing is updated.
    """
    count = denominator([len(sample.completion_ids) for sample in samples], loss.normalization)
    norms = {}
    for task in TASKS:
        members = [sample for sample in samples if sample.task == task]
        if members:
            policy.forward_backward(prepare(policy, members, loss).batches, GrpoLoss(loss, count))
            norms[f"policy/grad_norm/{task}"] = policy.grad_norm()
    return norms


def prepare(policy: Policy, samples: Sequence[Sample], loss: LossConfig) -> MiniBatch:
    """Packs `samples` into this rank's micro-batches, with the log-probabilities that are known before training."""
    names = [*VALUES, *(["old_logprobs"] if loss.old_logprobs == "rollout" else [])]
    sequences = [_sequence(sample, index) for index, sample in enumerate(samples)]
    batches = policy.micro_batches(sequences, loss.max_tokens_per_micro_batch, names)
    if loss.kl_coefficient:
        for batch, logprobs_R in zip(batches, policy.reference_logprobs(batches), strict=False):
            batch.values["reference_logprobs"] = logprobs_R
    return MiniBatch(
        batches=batches,
        denominator=denominator([len(sample.completion_ids) for sample in samples], loss.normalization),
        num_tokens=sum(sequence.num_input_tokens for sequence in sequences),
    )


def _measured(minibatches: Sequence[MiniBatch], loss: LossConfig) -> tuple[Sequence[PackedBatch], str]:
    """Micro-batches that hold the trainer's log-probabilities at the weights that wrote them, and their name there.

    Where the old ones are the engine's, those are the first pass's, before an optimizer step came between.
    """
    if loss.old_logprobs == "rollout":
        return minibatches[0].batches, "first_logprobs"
    return [batch for minibatch in minibatches for batch in minibatch.batches], "old_logprobs"


def _split_by_group(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """At most `count` parts of whole groups, in order, with about equally many groups."""
    ids = list(dict.fromkeys(sample.group for sample in samples))
    bounds = [round(len(ids) * k / count) for k in range(count + 1)]
    parts = [set(ids[a:b]) for a, b in pairwise(bounds) if b > a]
    return [[sample for sample in samples if sample.group in part] for part in parts]


def _sequence(sample: Sample, index: int) -> TokenSequence:
    count = len(sample.completion_ids)
    values: dict[str, Sequence[float]] = {
        "advantages": [sample.advantage] * count,
        "rollout_logprobs": sample.rollout_logprobs,
        "old_logprobs": sample.rollout_logprobs,
        "task": [TASKS.index(sample.task)] * count,
        "sequence": [index] * count,
    }
    return TokenSequence((*sample.prompt_ids, *sample.completion_ids), len(sample.prompt_ids), values)
