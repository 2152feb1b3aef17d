"""Log-probability and entropy of tokens from logits whose vocabulary is spread over tensor-parallel ranks.

Shapes: `_N` tokens, `_V` this rank's part of the (padded) vocabulary. Everything is computed in float32, out of place.
megatron-core's own cross entropies are not used: one overwrites the logits, the other rounds gradients to bfloat16.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def token_logprobs(
    logits_NV: Tensor, targets_N: Tensor, vocab_size: int, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, entropy of each distribution), both [N] in float32 and differentiable.

    Columns at or above `vocab_size` (padding of the last ranks) take no part. `group`: the tensor-parallel ranks that
    hold the other columns; None for one rank. Every rank of the group gets the whole result.
    """
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(logits_NV, targets_N, vocab_size, group)  # type: ignore[no-untyped-call]
    return result


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, vocab_size: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        width = logits_NV.shape[1]
        first = (dist.get_rank(group) if group is not None else 0) * width
        logits_NV = logits_NV.float()
        if first + width > vocab_size:
            padding = torch.arange(first, first + width, device=logits_NV.device) >= vocab_size
            logits_NV = logits_NV.masked_fill(padding, torch.finfo(torch.float32).min)
        highest_N = logits_NV.amax(-1)
        _all_reduce(highest_N, dist.ReduceOp.MAX, group)
        shifted_NV = logits_NV - highest_N[:, None]
        probs_NV = shifted_NV.exp()
        local_N = targets_N - first
        here_N = (local_N >= 0) & (local_N < width)
        local_N = local_N.clamp(0, width - 1)
        target_N = torch.where(here_N, shifted_NV.gather(1, local_N[:, None])[:, 0], 0.0)
        # Padding has probability 0 and a huge negative logit: their product is 0, as the entropy wants it.
        sums_3N = torch.stack([probs_NV.sum(-1), (probs_NV * shifted_NV).sum(-1), target_N])
        _all_reduce(sums_3N, dist.ReduceOp.SUM, group)
        total_N, weighted_N, target_N = sums_3N
        log_total_N = total_N.log()
        entropy_N = log_total_N - weighted_N / total_N
        ctx.save_for_backward(shifted_NV, log_total_N, entropy_N, local_N, here_N)
        return target_N - log_total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprob_N, grad_entropy_N = grads  # None where the result was not used
        shifted_NV, log_total_N, entropy_N, local_N, here_N = ctx.saved_tensors
        logprobs_NV = shifted_NV - log_total_N[:, None]
        probs_NV = logprobs_NV.exp()
        # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
        grad_NV = torch.zeros_like(probs_NV)
        if grad_logprob_N is not None:
            grad_NV -= probs_NV * grad_logprob_N[:, None]
            grad_NV.scatter_add_(1, local_N[:, None], (grad_logprob_N * here_N)[:, None])
        if grad_entropy_N is not None:
            grad_NV -= grad_entropy_N[:, None] * probs_NV * (logprobs_NV + entropy_N[:, None])
        return grad_NV, None, None, None


def _all_reduce(tensor: Tensor, op: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op, group=group)
