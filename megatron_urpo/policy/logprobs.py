"""Log-probability and entropy of tokens straight from hidden states and the output weight, in chunks of tokens.

The logits of a long micro-batch are the largest tensor of a training step (4,096 tokens x 152k words in float32: 2.5
GB, several times over in the backward pass). Here they never exist whole: forward and backward each compute them a
chunk at a time. The price is one more matrix product in the backward pass.

Shapes: `_N` tokens, `_C` a chunk of them, `_H` hidden size, `_V` this rank's part of the (padded) vocabulary.
Products are computed in the weight's dtype, everything after them in float32. megatron-core's own cross entropies are
not used: one overwrites the logits, the other rounds gradients to bfloat16.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that exist at one time: 64 MiB in float32, two or three times over."""

PADDING_LOGIT = -1e30
"""Far below any logit, so its weight is 0, yet far enough from infinity to be multiplied by a gradient before that."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, entropy of each distribution), both [N] in float32.

    Differentiable in `hidden_NH` and `weight_VH`. Rows of the weight at or above `vocab_size` (padding of the last
    ranks) take no part. `group`: the tensor-parallel ranks that hold the other rows; None for one rank. Every rank gets
    the whole result; the gradient of `hidden_NH` is this rank's share, to be summed over the group by the caller.
    """
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, targets_N, vocab_size, group, chunk_elements
    )
    return result


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        width = weight_VH.shape[0]
        first = (dist.get_rank(group) if group is not None else 0) * width
        num_real = max(0, min(width, vocab_size - first))
        local_N = targets_N - first
        here_N = (local_N >= 0) & (local_N < width)
        local_N = local_N.clamp(0, width - 1)
        hidden_NH = hidden_NH.to(weight_VH.dtype)
        highest, sums = [], []
        chunks = list(_chunks(len(targets_N), width, chunk_elements))
        for chunk in chunks:
            logits_CV = _logits(hidden_NH[chunk], weight_VH, num_real)
            target_C = logits_CV.gather(1, local_N[chunk][:, None])[:, 0]
            highest_C = logits_CV.amax(-1)
            logits_CV -= highest_C[:, None]
            weights_CV = logits_CV.exp()
            # Padding has weight 0 and a huge negative logit: their product is 0, as the entropy wants it.
            weighted_C = logits_CV.mul_(weights_CV).sum(-1)
            highest.append(highest_C)
            sums.append(torch.stack([weights_CV.sum(-1), weighted_C, torch.where(here_N[chunk], target_C, 0.0)]))
        highest_N = torch.cat(highest) if highest else hidden_NH.new_empty(0, dtype=torch.float32)
        sums_3N = torch.cat(sums, 1) if sums else hidden_NH.new_empty(3, 0, dtype=torch.float32)
        log_total_N, entropy_N, target_N = _combine(highest_N, sums_3N, group)
        ctx.save_for_backward(hidden_NH, weight_VH, log_total_N, entropy_N, local_N, here_N)
        ctx.chunks, ctx.num_real = chunks, num_real
        return target_N - log_total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprob_N, grad_entropy_N = grads  # None where the result was not used
        hidden_NH, weight_VH, log_total_N, entropy_N, local_N, here_N = ctx.saved_tensors
        grad_hidden_NH = torch.zeros_like(hidden_NH)
        # In float32, so that adding up chunks loses nothing where the weight is bfloat16.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in ctx.chunks:
            logprobs_CV = _logits(hidden_NH[chunk], weight_VH, ctx.num_real)
            logprobs_CV -= log_total_N[chunk][:, None]
            probs_CV = logprobs_CV.exp()
            # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
            if grad_entropy_N is not None:
                logprobs_CV.add_(entropy_N[chunk][:, None]).mul_(-grad_entropy_N[chunk][:, None])
            else:
                logprobs_CV.zero_()
            grad_CV = logprobs_CV
            if grad_logprob_N is not None:
                grad_CV -= grad_logprob_N[chunk][:, None]
            grad_CV *= probs_CV
            if grad_logprob_N is not None:
                onehot_C = grad_logprob_N[chunk] * here_N[chunk]
                grad_CV.scatter_add_(1, local_N[chunk][:, None], onehot_C[:, None])
            rounded_CV = grad_CV.to(weight_VH.dtype)
            grad_hidden_NH[chunk] = rounded_CV @ weight_VH
            if weight_VH.dtype == torch.float32:
                grad_weight_VH.addmm_(rounded_CV.t(), hidden_NH[chunk])
            else:
                grad_weight_VH += rounded_CV.t() @ hidden_NH[chunk]
        return grad_hidden_NH, grad_weight_VH.to(weight_VH.dtype), None, None, None, None


def _chunks(num_tokens: int, width: int, chunk_elements: int) -> list[slice]:
    size = max(1, chunk_elements // width)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, num_real: int) -> Tensor:
    logits_CV = (hidden_CH @ weight_VH.t()).float()
    if num_real < weight_VH.shape[0]:
        logits_CV[:, num_real:] = PADDING_LOGIT
    return logits_CV


def _combine(highest_N: Tensor, sums_3N: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """(log of the sum of exp, entropy, target logit) of the whole vocabulary from the sums of its parts.

    `sums_3N`: of exp(l - highest), of the same times (l - highest), and the target's logit where it is here.
    """
    total_N, weighted_N, target_N = sums_3N
    overall_N = highest_N.clone()
    _all_reduce(overall_N, dist.ReduceOp.MAX, group)
    gap_N = highest_N - overall_N
    scale_N = gap_N.exp()
    whole_3N = torch.stack([total_N * scale_N, (weighted_N + total_N * gap_N) * scale_N, target_N])
    _all_reduce(whole_3N, dist.ReduceOp.SUM, group)
    total_N, weighted_N, target_N = whole_3N
    log_total_N = total_N.log()
    return overall_N + log_total_N, log_total_N - weighted_N / total_N, target_N


def _all_reduce(tensor: Tensor, op: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op, group=group)
