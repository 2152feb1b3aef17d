"""The arithmetic of each kind of weight, on whole tensors.

Megatron keeps q, k and v in one matrix, interleaved by key-value group: [q heads of the group | k | v], and gate above
up in `linear_fc1`; a tensor-parallel rank holds whole groups, and its part of gate above its part of up. `regions.py`
says the same of ranges of rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.entries import WeightEntry
from megatron_urpo.policy.hf.table import padded_vocab_size


def join(entry: WeightEntry, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """Hugging Face tensors -> the one unsharded Megatron tensor. Of q, k and v the same groups of each will do."""
    if entry.kind == "gate_up":
        return torch.cat(list(tensors))
    if entry.kind == "qkv":
        groups = tensors[1].shape[0] // shape.head_dim
        parts = [x.reshape(groups, x.shape[0] // groups, *x.shape[1:]) for x in tensors]
        return torch.cat(parts, dim=1).flatten(0, 1)
    (tensor,) = tensors
    return tensor


def split(entry: WeightEntry, whole: Tensor, shape: ModelShape) -> tuple[Tensor, ...]:
    """The inverse of `join`; vocabulary padding is cut off."""
    if entry.kind == "gate_up":
        return whole.chunk(2)
    if entry.kind == "qkv":
        groups, dim = shape.num_query_groups, shape.head_dim
        queries = shape.num_heads // groups * dim
        grouped = whole.reshape(groups, queries + 2 * dim, *whole.shape[1:])
        return tuple(part.flatten(0, 1) for part in torch.split(grouped, [queries, dim, dim], dim=1))
    if entry.kind == "vocab":
        return (whole[: shape.vocab_size],)
    return (whole,)


def shard(entry: WeightEntry, whole: Tensor, rank: int, size: int) -> Tensor:
    """The part of tensor-parallel rank `rank` of `size`; the vocabulary is padded with zeros to divide."""
    if entry.kind == "replicated":
        return whole
    if entry.kind == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
    if entry.kind == "vocab":
        missing = padded_vocab_size(whole.shape[0], size) - whole.shape[0]
        whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])]) if missing else whole
    return whole.chunk(size, dim=1 if entry.kind == "row" else 0)[rank]


def unshard(entry: WeightEntry, shards: Sequence[Tensor]) -> Tensor:
    """The inverse of `shard`, but for vocabulary padding (see `split`)."""
    if entry.kind == "replicated":
        return shards[0]
    if entry.kind == "gate_up":
        halves = [part.chunk(2) for part in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    return torch.cat(list(shards), dim=1 if entry.kind == "row" else 0)
