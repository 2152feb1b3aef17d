"""The objective of one mini-batch, as the loss that a pass of the policy takes."""

import torch
from torch import Tensor

from megatron_urpo.algorithm.corrections import sequence_mis, token_tis
from megatron_urpo.algorithm.losses import clipped_policy_loss, kl_to_reference
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.packing import PackedBatch


class GrpoLoss:
    """The clipped objective, with KL to the reference where that is asked for; `count` divides the whole sum.

    A micro-batch without old log-probabilities is met for the first time, at the weights that they are asked at: this
    pass's own are kept for the later epochs. So are the importance weights, which follow from them.
    """

    def __init__(self, config: LossConfig, count: int):
        self.config = config
        self.count = count

    def __call__(self, logprobs_R: Tensor, entropy_R: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        config, values = self.config, batch.values
        first_R = values.setdefault("first_logprobs", logprobs_R.detach())
        old_R = values.setdefault("old_logprobs", first_R)
        if "weights" not in values:
            values["weights"] = rollout_weights(config, old_R, batch)
        total, stats = clipped_policy_loss(
            logprobs_R,
            old_R,
            values["advantages"],
            values["weights"],
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        sums = {name: float(x) for name, x in stats.items()}
        if config.kl_coefficient:
            kl = kl_to_reference(logprobs_R, values["reference_logprobs"]).sum()
            total = total + config.kl_coefficient * kl
            sums["kl_reference"] = float(kl.detach())
        value = total / self.count
        sums |= {
            "loss": float(value.detach()),
            "entropy": float(entropy_R.detach().sum()),
            "response_tokens": float(logprobs_R.numel()),
        }
        return value, sums


def rollout_weights(config: LossConfig, old_logprobs_R: Tensor, batch: PackedBatch) -> Tensor:
    """The importance weight of each response token, [R]; 1 without a correction."""
    rollout_R, cap = batch.values["rollout_logprobs"], config.rollout_correction_cap
    if config.rollout_correction == "token_tis":
        return token_tis(old_logprobs_R, rollout_R, cap)
    if config.rollout_correction == "sequence_mis":
        return sequence_mis(old_logprobs_R, rollout_R, batch.values["sequence"], cap)
    return torch.ones_like(old_logprobs_R)
