"""Which sample makes a gradient that is not finite."""

import math
from collections.abc import Sequence

from megatron_urpo.algorithm.losses import denominator
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.objective import GrpoLoss
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.update import prepare
from megatron_urpo.types import Sample


def not_finite_samples(policy: Policy, samples: Sequence[Sample], loss: LossConfig) -> list[int]:
    """The fewest of `samples`, by index, that halving finds to have a gradient that is not finite at these weights.

    One index: that sample alone does, and none before it, most likely. Several: only together, by overflow of the sum.
    None: the gradient of all is finite where the ratio to the old policy is 1, so the ratio was the cause. Nothing is
    updated. Collective; at most 1 + 2 log2(samples) passes.
    """
    count = denominator([len(sample.completion_ids) for sample in samples], loss.normalization)

    def is_finite(indices: Sequence[int]) -> bool:
        batches = prepare(policy, [samples[index] for index in indices], loss).batches
        policy.forward_backward(batches, GrpoLoss(loss, count))
        return math.isfinite(policy.grad_norm())

    suspects = list(range(len(samples)))
    if is_finite(suspects):
        return []
    while len(suspects) > 1:
        middle = len(suspects) // 2
        halves = suspects[:middle], suspects[middle:]
        worse = next((half for half in halves if not is_finite(half)), None)
        if worse is None:
            break
        suspects = worse
    return suspects
