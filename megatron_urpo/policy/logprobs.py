"""Log-probability and entropy of tokens straight from hidden states and the output weight, in chunks of tokens.

The logits of a long micro-batch are the largest tensor of a training step (4,096 tokens x 152k words in float32: 2.5
GB, several times over in the backward pass). Here they never exist whole: forward and backward each compute them a
chunk at a time. The price is one more matrix product in the backward pass, which is not paid where all tokens are one
chunk: then the exponentials of the forward pass are kept.

Shapes: `_N` tokens, `_C` a chunk of them, `_H` hidden size, `_V` this rank's part of the (padded) vocabulary,
`_S` parts of that part which are summed apart. Products are computed in the weight's dtype, everything after them in
float32. megatron-core's own cross entropies are not used: one overwrites the logits, the other rounds gradients to
bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that exist at one time: 64 MiB in float32, two or three times over."""

PADDING_LOGIT = -1e30
"""Far below any logit, so its weight is 0, yet far enough from infinity to be multiplied by a gradient before that."""

Kernel = Literal["torch", "triton"]


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    kernel: Kernel = "torch",
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, entropy of each distribution), both [N] in float32.

    Differentiable in `hidden_NH` and `weight_VH`. Rows of the weight at or above `vocab_size` (padding of the last
    ranks) take no part. `group`: the tensor-parallel ranks that hold the other rows; None for one rank. Every rank gets
    the whole result; the gradient of `hidden_NH` is this rank's share, to be summed over the group by the caller.

    `kernel`: `triton` computes the same on CUDA without rounding bfloat16 products (`logprobs_triton.py`). It becomes
    the default where docs/measurements/gpu.md shows it to be faster. Raises ValueError where it cannot run.
    """
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, targets_N, vocab_size, group, chunk_elements, kernel
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
        kernel: Kernel,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        width = weight_VH.shape[0]
        first = (dist.get_rank(group) if group is not None else 0) * width
        num_real = max(0, min(width, vocab_size - first))
        local_N = targets_N - first
        local_N = torch.where((local_N >= 0) & (local_N < width), local_N, -1)
        hidden_NH = hidden_NH.to(weight_VH.dtype)
        vocabulary_sums, ctx.gradients = _passes(kernel)
        ctx.kept_NV = None
        if kernel == "torch" and len(local_N) * width <= chunk_elements:
            ctx.kept_NV = hidden_NH.new_empty(len(local_N), width, dtype=torch.float32)
            vocabulary_sums = partial(vocabulary_sums, kept_NV=ctx.kept_NV)
        sums = vocabulary_sums(hidden_NH, weight_VH, local_N, num_real, chunk_elements)
        log_total_N, entropy_N, target_N = _combine(*sums, group)
        ctx.save_for_backward(hidden_NH, weight_VH, local_N, log_total_N, entropy_N)
        ctx.num_real, ctx.chunk_elements, ctx.highest_N = num_real, chunk_elements, sums[0][0]
        return target_N - log_total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept_NV, ctx.kept_NV = ctx.kept_NV, None  # written over: a second pass would compute them anew
        # A gradient is None where the result was not used.
        if kept_NV is not None and grads[0] is not None and grads[1] is None:
            hidden_NH, weight_VH, local_N, log_total_N, _ = ctx.saved_tensors
            scale_N = (ctx.highest_N - log_total_N).exp_().mul_(grads[0]).neg_()
            kept_NV.mul_(scale_N[:, None])  # -p times the gradient
            _add_at_targets(kept_NV, local_N, grads[0])
            grad_NV = kept_NV.to(weight_VH.dtype)
            return grad_NV @ weight_VH, grad_NV.t() @ hidden_NH, None, None, None, None, None
        grad_hidden_NH, grad_weight_VH = ctx.gradients(*ctx.saved_tensors, *grads, ctx.num_real, ctx.chunk_elements)
        return grad_hidden_NH, grad_weight_VH, None, None, None, None, None


def _passes(kernel: Kernel) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor]]]:
    """The forward and the backward pass over this rank's logits."""
    if kernel == "torch":
        return vocabulary_sums, gradients
    # Only here: Triton comes with the CUDA build of torch and is missing in others.
    try:
        from megatron_urpo.policy import logprobs_triton
    except ModuleNotFoundError as error:
        raise ValueError("token_logprobs: kernel='triton' needs the package triton; use kernel='torch'") from error
    return logprobs_triton.vocabulary_sums, logprobs_triton.gradients


def vocabulary_sums(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    local_N: Tensor,
    num_real: int,
    chunk_elements: int,
    kept_NV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(highest logit [S, N], sums [S, 3, N]) as `_combine` takes them, here with S = 1.

    `local_N`: the row of each token's target, -1 where this rank does not have it. Rows from `num_real` are padding.
    `kept_NV` is filled with exp(logit - highest logit of the token).
    """
    num_tokens = len(local_N)
    highest_1N = hidden_NH.new_empty(1, num_tokens, dtype=torch.float32)
    sums_13N = hidden_NH.new_empty(1, 3, num_tokens, dtype=torch.float32)
    for chunk in _chunks(num_tokens, weight_VH.shape[0], chunk_elements):
        logits_CV = _logits(hidden_NH[chunk], weight_VH, num_real)
        target_C = logits_CV.gather(1, local_N[chunk].clamp(min=0)[:, None])[:, 0]
        highest_C = logits_CV.amax(-1)
        logits_CV -= highest_C[:, None]
        weights_CV = torch.exp(logits_CV, out=None if kept_NV is None else kept_NV[chunk])
        highest_1N[0, chunk], sums_13N[0, 0, chunk] = highest_C, weights_CV.sum(-1)
        # Padding has weight 0 and a huge negative logit: their product is 0, as the entropy wants it.
        sums_13N[0, 1, chunk] = logits_CV.mul_(weights_CV).sum(-1)
        sums_13N[0, 2, chunk] = torch.where(local_N[chunk] >= 0, target_C, 0.0)
    return highest_1N, sums_13N


def gradients(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    local_N: Tensor,
    log_total_N: Tensor,
    entropy_N: Tensor,
    grad_logprob_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    num_real: int,
    chunk_elements: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of `hidden_NH` and `weight_VH`, in their dtype. `log_total_N`: log of the sum of exp(logit)."""
    grad_hidden_NH = torch.zeros_like(hidden_NH)
    # In float32, so that adding up chunks loses nothing where the weight is bfloat16.
    grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
    for chunk in _chunks(len(local_N), weight_VH.shape[0], chunk_elements):
        logprobs_CV = _logits(hidden_NH[chunk], weight_VH, num_real)
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
            _add_at_targets(grad_CV, local_N[chunk], grad_logprob_N[chunk])
        rounded_CV = grad_CV.to(weight_VH.dtype)
        grad_hidden_NH[chunk] = rounded_CV @ weight_VH
        if weight_VH.dtype == torch.float32:
            grad_weight_VH.addmm_(rounded_CV.t(), hidden_NH[chunk])
        else:
            grad_weight_VH += rounded_CV.t() @ hidden_NH[chunk]
    return grad_hidden_NH, grad_weight_VH.to(weight_VH.dtype)


def _add_at_targets(grad_CV: Tensor, local_C: Tensor, grad_logprob_C: Tensor) -> None:
    here_C = grad_logprob_C * (local_C >= 0)
    grad_CV.scatter_add_(1, local_C.clamp(min=0)[:, None], here_C[:, None])


def _chunks(num_tokens: int, width: int, chunk_elements: int) -> list[slice]:
    size = max(1, chunk_elements // width)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, num_real: int) -> Tensor:
    logits_CV = (hidden_CH @ weight_VH.t()).float()
    if num_real < weight_VH.shape[0]:
        logits_CV[:, num_real:] = PADDING_LOGIT
    return logits_CV


def _combine(highest_SN: Tensor, sums_S3N: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """(log of the sum of exp, entropy, target logit) of the whole vocabulary from the sums of its parts.

    `sums_S3N`: of exp(l - highest), of the same times (l - highest), and the target's logit where the part has it.
    """
    overall_N = highest_SN.amax(0)
    _all_reduce(overall_N, dist.ReduceOp.MAX, group)
    total_SN, weighted_SN, target_SN = sums_S3N.unbind(1)
    gap_SN = highest_SN - overall_N
    scale_SN = gap_SN.exp()
    whole_S3N = torch.stack([total_SN * scale_SN, (weighted_SN + total_SN * gap_SN) * scale_SN, target_SN], 1)
    whole_3N = whole_S3N.sum(0)
    _all_reduce(whole_3N, dist.ReduceOp.SUM, group)
    total_N, weighted_N, target_N = whole_3N
    log_total_N = total_N.log()
    return overall_N + log_total_N, log_total_N - weighted_N / total_N, target_N


def _all_reduce(tensor: Tensor, op: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op, group=group)
