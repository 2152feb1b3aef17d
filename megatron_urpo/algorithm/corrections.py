"""Importance weights for completions that were sampled by slightly different numbers than the trainer computes.

An engine with other kernels, another precision or other weights samples from mu while the trainer differentiates pi.
The gradient of pi's objective over mu's samples needs the weight pi / mu; it is bounded here, because an unbounded one
has an unbounded variance.

Shapes: `_R` the response tokens of one micro-batch.
"""

import torch
from torch import Tensor


def token_tis(old_logprobs_R: Tensor, rollout_logprobs_R: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling of tokens: min(pi(token) / mu(token), cap), [R], without gradient.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    return (old_logprobs_R - rollout_logprobs_R).detach().exp().clamp(max=cap)


def sequence_mis(old_logprobs_R: Tensor, rollout_logprobs_R: Tensor, sequence_R: Tensor, cap: float) -> Tensor:
    """Masked importance sampling of sequences: pi(y) / mu(y) for every token of y, 0 where that is above `cap`; [R].

    `sequence_R` (whole numbers from 0) tells which completion a token belongs to. All tokens of a completion must be
    here: the weight is the product over them.
    Source: Liu et al., "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch"
    (2025).
    """
    gap_R = (old_logprobs_R - rollout_logprobs_R).detach()
    index_R = sequence_R.long()
    count = int(index_R.max()) + 1 if index_R.numel() else 0
    # In float64: thousands of small gaps add up, and the exponential multiplies what was lost.
    total = torch.zeros(count, dtype=torch.float64, device=gap_R.device).index_add_(0, index_R, gap_R.double())
    ratio = total.exp()
    return torch.where(ratio <= cap, ratio, 0.0)[index_R].to(gap_R.dtype)
