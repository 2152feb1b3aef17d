"""What `logprobs.py` needs of the logits, computed by Triton tile by tile: for CUDA, where tiles never leave the chip.

Forward: a program takes one block of tokens through one part of the vocabulary and keeps running sums, so logits are
never written. Backward: the gradient of the logits is made in one pass, in the weight's dtype, for one chunk of the
*vocabulary* at a time, and the matrix library multiplies it. So a chunk's rows of the weight's gradient are complete
at once and need no float32 copy of the whole, nothing is added atomically, and a run repeats bit for bit.

Shapes: `_N` tokens, `_H` hidden size, `_V` this rank's rows of the weight, `_C` a chunk of them, `_S` parts of the
vocabulary that are summed apart. Inside kernels `_N`, `_V` and `_H` are one tile. Products add up in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_TOKENS = 128
TILE_WORDS = 128
TILE_BYTES = 128
"""Of a row, per load: 64 values in bfloat16 and 32 in float32. Two tiles, three deep in flight, fill 96 KiB."""

PROGRAMS = 1024
"""The vocabulary is cut until about so many programs run: several for each processor of a large GPU. A constant, so
that the order of additions depends on the shapes alone."""

LOWEST = tl.constexpr(-1e30)
"""Below any logit; finite, so that a difference of two of them is 0."""

WARPS, STAGES = 8, 3


def vocabulary_sums(
    hidden_NH: Tensor, weight_VH: Tensor, local_N: Tensor, num_real: int, chunk_elements: int
) -> tuple[Tensor, Tensor]:
    """As `logprobs.vocabulary_sums`, with S parts of the vocabulary. No logits are kept: `chunk_elements` is unused."""
    _check_device(hidden_NH)
    num_tokens, size = hidden_NH.shape
    blocks, tiles = triton.cdiv(num_tokens, TILE_TOKENS), triton.cdiv(num_real, TILE_WORDS)
    tiles_per_part = max(1, triton.cdiv(tiles * blocks, PROGRAMS))
    parts = max(1, triton.cdiv(tiles, tiles_per_part))
    highest_SN = hidden_NH.new_empty(parts, num_tokens, dtype=torch.float32)
    sums_S3N = hidden_NH.new_empty(parts, 3, num_tokens, dtype=torch.float32)
    if num_tokens:
        _sums_kernel[(blocks, parts)](
            hidden_NH.contiguous(),
            weight_VH.contiguous(),
            local_N,
            highest_SN,
            sums_S3N,
            num_tokens,
            num_real,
            size,
            tiles_per_part * TILE_WORDS,
            **_tile(hidden_NH.dtype),
        )
    return highest_SN, sums_S3N


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
    """As `logprobs.gradients`; `chunk_elements` are the logit gradients that exist at one time."""
    num_tokens, size = hidden_NH.shape
    hidden_NH, weight_VH = hidden_NH.contiguous(), weight_VH.contiguous()
    zero_N = torch.zeros_like(log_total_N)
    grad_logprob_N = zero_N if grad_logprob_N is None else grad_logprob_N.contiguous()
    grad_entropy_N = zero_N if grad_entropy_N is None else grad_entropy_N.contiguous()
    grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
    grad_weight_VH = torch.zeros_like(weight_VH)
    words = max(1, chunk_elements // max(1, num_tokens) // TILE_WORDS) * TILE_WORDS
    for first in range(0, num_real if num_tokens else 0, words):
        weight_CH = weight_VH[first : min(first + words, num_real)]
        grad_NC = hidden_NH.new_empty(num_tokens, len(weight_CH))
        _gradient_kernel[(triton.cdiv(num_tokens, TILE_TOKENS), triton.cdiv(len(weight_CH), TILE_WORDS))](
            hidden_NH,
            weight_CH,
            local_N - first,
            log_total_N,
            entropy_N,
            grad_logprob_N,
            grad_entropy_N,
            grad_NC,
            num_tokens,
            len(weight_CH),
            size,
            **_tile(hidden_NH.dtype),
        )
        torch.mm(grad_NC.t(), hidden_NH, out=grad_weight_VH[first : first + len(weight_CH)])
        grad_hidden_NH += grad_NC @ weight_CH
    return grad_hidden_NH.to(hidden_NH.dtype), grad_weight_VH


def _tile(dtype: torch.dtype) -> dict[str, int]:
    return {
        "TOKENS": TILE_TOKENS,
        "WORDS": TILE_WORDS,
        "CHANNELS": TILE_BYTES // dtype.itemsize,
        "WIDEN": _interpreted(),
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _interpreted() -> bool:
    return not isinstance(_sums_kernel, triton.JITFunction)


def _check_device(tensor: Tensor) -> None:
    if not tensor.is_cuda and not _interpreted():
        raise ValueError(
            f"token_logprobs: kernel='triton' runs on CUDA tensors, these are on {tensor.device}; use kernel='torch'"
            " (or TRITON_INTERPRET=1 from the start of the process, to check the kernels slowly on a CPU)"
        )


@triton.jit  # type: ignore[untyped-decorator]
def _logits(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    row_N,
    word_V,
    num_tokens,
    num_words,
    size,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of logits, [N, V] in float32. Both passes go through here, so their logits are the same to the bit."""
    logits_NV = tl.zeros([TOKENS, WORDS], tl.float32)
    # 64 bits: the last row of a large vocabulary starts beyond 2**31 values.
    hidden_N = hidden + row_N.to(tl.int64) * size
    weight_V = weight + word_V.to(tl.int64) * size
    for first in range(0, size, CHANNELS):
        channel_H = first + tl.arange(0, CHANNELS)
        inside_H = channel_H < size
        h_NH = tl.load(
            hidden_N[:, None] + channel_H[None, :], mask=(row_N < num_tokens)[:, None] & inside_H[None, :], other=0.0
        )
        w_VH = tl.load(
            weight_V[:, None] + channel_H[None, :], mask=(word_V < num_words)[:, None] & inside_H[None, :], other=0.0
        )
        if WIDEN:
            # Triton's interpreter multiplies the bits of bfloat16 as integers (seen in 3.6 and 3.8). Drop this when it
            # does not; products of bfloat16 are exact in float32, as they are on the tensor cores.
            h_NH, w_VH = h_NH.to(tl.float32), w_VH.to(tl.float32)
        # "ieee": float32 stays float32; the default rounds it to 10 bits of mantissa (TF32).
        logits_NV = tl.dot(h_NH, tl.trans(w_VH), logits_NV, input_precision="ieee")
    return logits_NV


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    local,
    highest,
    sums,
    num_tokens,
    num_words,
    size,
    words_per_part,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Grid: (blocks of tokens, parts of the vocabulary). Neighbours share a part, so the weight is read from cache."""
    part = tl.program_id(1)
    row_N = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real_N = row_N < num_tokens
    target_N = tl.load(local + row_N, mask=real_N, other=-1)
    highest_N = tl.full([TOKENS], LOWEST, tl.float32)
    total_N = tl.zeros([TOKENS], tl.float32)
    weighted_N = tl.zeros([TOKENS], tl.float32)
    logit_N = tl.zeros([TOKENS], tl.float32)
    begin = part * words_per_part
    for first in range(begin, tl.minimum(begin + words_per_part, num_words), WORDS):
        word_V = first + tl.arange(0, WORDS)
        logits_NV = _logits(hidden, weight, row_N, word_V, num_tokens, num_words, size, TOKENS, WORDS, CHANNELS, WIDEN)
        logit_N += tl.sum(tl.where(word_V[None, :] == target_N[:, None], logits_NV, 0.0), 1)
        logits_NV = tl.where((word_V < num_words)[None, :], logits_NV, LOWEST)
        higher_N = tl.maximum(highest_N, tl.max(logits_NV, 1))
        gap_N = highest_N - higher_N
        scale_N = tl.exp(gap_N)
        below_NV = logits_NV - higher_N[:, None]
        weight_NV = tl.exp(below_NV)
        weighted_N = (weighted_N + total_N * gap_N) * scale_N + tl.sum(weight_NV * below_NV, 1)
        total_N = total_N * scale_N + tl.sum(weight_NV, 1)
        highest_N = higher_N
    place_N = part.to(tl.int64) * num_tokens + row_N
    tl.store(highest + place_N, highest_N, mask=real_N)
    sums_N = sums + part.to(tl.int64) * 3 * num_tokens + row_N
    tl.store(sums_N, total_N, mask=real_N)
    tl.store(sums_N + num_tokens, weighted_N, mask=real_N)
    tl.store(sums_N + 2 * num_tokens, logit_N, mask=real_N)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    local,
    log_total,
    entropy,
    grad_logprob,
    grad_entropy,
    grad,
    num_tokens,
    num_words,
    size,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Grid: (blocks of tokens, tiles of words)."""
    row_N = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    word_V = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    real_N = row_N < num_tokens
    logits_NV = _logits(hidden, weight, row_N, word_V, num_tokens, num_words, size, TOKENS, WORDS, CHANNELS, WIDEN)
    target_N = tl.load(local + row_N, mask=real_N, other=-1)
    log_total_N = tl.load(log_total + row_N, mask=real_N, other=0.0)
    entropy_N = tl.load(entropy + row_N, mask=real_N, other=0.0)
    grad_logprob_N = tl.load(grad_logprob + row_N, mask=real_N, other=0.0)
    grad_entropy_N = tl.load(grad_entropy + row_N, mask=real_N, other=0.0)
    logprob_NV = logits_NV - log_total_N[:, None]
    # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
    pull_NV = grad_logprob_N[:, None] + grad_entropy_N[:, None] * (logprob_NV + entropy_N[:, None])
    onehot_NV = tl.where(word_V[None, :] == target_N[:, None], grad_logprob_N[:, None], 0.0)
    grad_NV = onehot_NV - tl.exp(logprob_NV) * pull_NV
    place_NV = row_N.to(tl.int64)[:, None] * num_words + word_V[None, :]
    inside_NV = real_N[:, None] & (word_V < num_words)[None, :]
    tl.store(grad + place_NV, grad_NV.to(grad.dtype.element_ty), mask=inside_NV)
