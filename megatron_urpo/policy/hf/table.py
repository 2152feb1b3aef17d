"""The one table between Hugging Face names and Megatron's, and the arithmetic of each kind of weight.

Loader, export and converters all walk `weight_entries`. Megatron keeps q, k and v in one matrix, interleaved by
key-value group: [q heads of the group | k | v], and gate above up in `linear_fc1`; a tensor-parallel rank holds whole
groups, and its part of gate above its part of up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_urpo.policy.hf.shape import ModelShape

Kind = Literal["replicated", "vocab", "column", "row", "qkv", "gate_up"]


@dataclass(frozen=True)
class WeightEntry:
    """`megatron` is the whole model's name (layers counted over all stages); `hf` the tensors that it holds."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind


def weight_entries(shape: ModelShape, spec: str) -> list[WeightEntry]:
    """Every weight of the model in its order of use. `spec`: `torch` or `te`, which fuses norms into linears."""
    entries = [WeightEntry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab")]
    for layer in range(shape.num_layers):
        entries += _layer_entries(shape, spec, layer)
    entries.append(WeightEntry("decoder.final_layernorm.weight", ("model.norm.weight",), "replicated"))
    if not shape.tied_embeddings:
        entries.append(WeightEntry("output_layer.weight", ("lm_head.weight",), "vocab"))
    return entries


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
        "gate_proj.weight": (shape.ffn_hidden_size, wide),
        "up_proj.weight": (shape.ffn_hidden_size, wide),
        "down_proj.weight": (wide, shape.ffn_hidden_size),
        "q_norm.weight": (shape.head_dim,),
        "k_norm.weight": (shape.head_dim,),
    }
    names = (name for entry in weight_entries(shape, "torch") for name in entry.hf)
    # What is left are the norms over the residual stream.
    return {name: by_ending.get(".".join(name.split(".")[-2:]), (wide,)) for name in names}


def _layer_entries(shape: ModelShape, spec: str, layer: int) -> list[WeightEntry]:
    ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
    te = spec == "te"
    attention_norm = "self_attention.linear_qkv.layer_norm_weight" if te else "input_layernorm.weight"
    mlp_norm = "mlp.linear_fc1.layer_norm_weight" if te else "pre_mlp_layernorm.weight"

    def entry(megatron: str, kind: Kind, *hf: str) -> WeightEntry:
        return WeightEntry(ours + megatron, tuple(theirs + name for name in hf), kind)

    entries = [
        entry(attention_norm, "replicated", "input_layernorm.weight"),
        entry("self_attention.linear_qkv.weight", "qkv", *(f"self_attn.{x}_proj.weight" for x in "qkv")),
        entry("self_attention.linear_proj.weight", "row", "self_attn.o_proj.weight"),
        entry(mlp_norm, "replicated", "post_attention_layernorm.weight"),
        entry("mlp.linear_fc1.weight", "gate_up", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        entry("mlp.linear_fc2.weight", "row", "mlp.down_proj.weight"),
    ]
    if shape.qkv_bias:
        entries.append(entry("self_attention.linear_qkv.bias", "qkv", *(f"self_attn.{x}_proj.bias" for x in "qkv")))
    if shape.qk_norm:
        entries.append(entry("self_attention.q_layernorm.weight", "replicated", "self_attn.q_norm.weight"))
        entries.append(entry("self_attention.k_layernorm.weight", "replicated", "self_attn.k_norm.weight"))
    return entries


def join(entry: WeightEntry, tensors: Sequence[Tensor], shape: ModelShape) -> Tensor:
    """Hugging Face tensors -> the one unsharded Megatron tensor."""
    if entry.kind == "gate_up":
        return torch.cat(list(tensors))
    if entry.kind == "qkv":
        groups = shape.num_query_groups
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
        whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])])
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
