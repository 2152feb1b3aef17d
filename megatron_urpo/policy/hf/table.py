"""The one table between Hugging Face names and Megatron's, and the arithmetic of each kind of weight.

Loader, export and converters all walk `weight_entries`. Megatron keeps q, k and v in one matrix, interleaved by
key-value group: [q heads of the group | k | v], and gate above up in `linear_fc1`; a tensor-parallel rank holds whole
groups, and its part of gate above its part of up. `regions.py` says the same of ranges of rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.entries import WeightEntry, whole_model
from megatron_urpo.policy.hf.families import FAMILIES

__all__ = ["WeightEntry", "hf_shapes", "join", "padded_vocab_size", "shard", "split", "unshard", "weight_entries"]


def weight_entries(shape: ModelShape, spec: str) -> list[WeightEntry]:
    """Every weight of the model in its order of use. `spec`: `torch` or `te`, which fuses norms into linears."""
    return whole_model(shape, FAMILIES[shape.family].layer(shape, spec))


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The shape of every Hugging Face tensor that the model has."""
    wide, queries, values = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    by_ending: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (shape.vocab_size, wide),
        "lm_head.weight": (shape.vocab_size, wide),
        "q_proj.weight": (queries, wide),
        "k_proj.weight": (values, wide),
        "v_proj.weight": (values, wide),
        "q_proj.bias": (queries,),
        "k_proj.bias": (values,),
        "v_proj.bias": (values,),
        "o_proj.weight": (wide, queries),
        "gate.weight": (shape.num_experts or 0, wide),
        "gate_proj.weight": (shape.ffn_hidden_size, wide),
        "up_proj.weight": (shape.ffn_hidden_size, wide),
        "down_proj.weight": (wide, shape.ffn_hidden_size),
        "q_norm.weight": (shape.head_dim,),
        "k_norm.weight": (shape.head_dim,),
    }
    names = (name for entry in weight_entries(shape, "torch") for name in entry.hf)
    # What is left are the norms over the residual stream.
    return {name: by_ending.get(".".join(name.split(".")[-2:]), (wide,)) for name in names}


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


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """The smallest size not below `vocab_size` that tensor-parallel ranks can share."""
    return (vocab_size + tensor - 1) // tensor * tensor
