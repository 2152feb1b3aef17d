"""The clipped policy objective over a flat row of tokens, as sums; the caller divides once by a global denominator.

    loss = sum over the whole mini-batch of weight * per_token  /  denominator

The denominator is fixed before samples are sharded, so loss and gradient do not depend on how tokens were packed into
micro-batches or spread over ranks.

Shapes: `_T` is the tokens of one micro-batch in any order. Everything is per token; nothing here knows of sequences.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def clipped_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    weights_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of -weight * min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage), and summed stats.

    Source: the PPO objective with DAPO's asymmetric clip; ratio = exp(logprob - old_logprob), gradient through
    `logprobs_T` alone. Where the weight is 0 (prompt, padding) nothing counts, whatever the values there.

    Returns the loss sum (scalar) and scalars without gradient, summed over tokens of weight above 0, unweighted:

    - `tokens`: how many there are;
    - `clipped_tokens`: those whose gradient the clip cut off;
    - `ratio_sum`;
    - `kl_k1_sum`, `kl_k3_sum`: KL(old || new) by the estimators -log ratio (unbiased, may be negative) and
      ratio - 1 - log ratio (never negative), Schulman's k1 and k3.
    """
    counted_T = weights_T > 0
    # Values under weight 0 may be infinite, and 0 * inf is nan: cut them out before any arithmetic.
    log_ratio_T = torch.where(counted_T, logprobs_T - old_logprobs_T.detach(), torch.zeros_like(logprobs_T))
    signal_T = torch.where(counted_T, advantages_T, torch.zeros_like(advantages_T))
    ratio_T = log_ratio_T.exp()
    plain_T = ratio_T * signal_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * signal_T
    loss = -(weights_T * torch.minimum(plain_T, clipped_T)).sum()
    with torch.no_grad():
        stats = {
            "tokens": counted_T.sum(),
            "clipped_tokens": (counted_T & (clipped_T < plain_T)).sum(),
            "ratio_sum": torch.where(counted_T, ratio_T, 0.0).sum(),
            "kl_k1_sum": -log_ratio_T.sum(),
            "kl_k3_sum": (ratio_T - 1 - log_ratio_T).sum(),
        }
    return loss, stats


def kl_to_reference(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """[T] estimates of KL(policy || reference), never negative, with gradient through `logprobs_T` alone.

    Source: Schulman's k3, as GRPO uses it: exp(d) - 1 - d with d = reference - policy, at a token the policy sampled.
    """
    gap_T = reference_logprobs_T.detach() - logprobs_T
    return gap_T.expm1() - gap_T


def denominator(lengths: Sequence[int], normalization: Literal["tokens", "responses"]) -> int:
    """What the loss sum of a whole mini-batch is divided by; `lengths` are completion tokens of all its samples.

    `tokens`: the number of completion tokens. `responses`: the number of completions, the literal 1/G sum of the
    method. In neither is a response divided by its own length, so every token weighs the same.

    Raises:
        ValueError: a mini-batch without a completion token has no loss.
    """
    if sum(lengths) <= 0:
        raise ValueError(f"{len(lengths)} completions hold no token; leave out a mini-batch that has nothing to learn")
    return sum(lengths) if normalization == "tokens" else len(lengths)
