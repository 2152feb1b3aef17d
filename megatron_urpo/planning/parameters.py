"""Which parameters a rank of the trainer holds, in the order in which its module lists them.

Sizes come from the table of weights that loader and export walk; the order is megatron-core's, and decides where a
gradient buffer is padded and which data-parallel rank updates what.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, padded_vocab_size, weight_entries

MODULE_ORDER = (
    "input_layernorm.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
    "mlp.router.weight",
    "mlp.experts.",
)
"""Of a layer, as megatron-core 0.16.1 registers them; experts one after the other, each with its two linears."""


@dataclass(frozen=True)
class Parameter:
    """`size` in elements. `shared_embedding`: the first and the last stage keep a copy each, in a bucket of its own."""

    name: str
    size: int
    shared_embedding: bool = False


def stage_parameters(shape: ModelShape, tensor: int, pipeline: int, stage: int) -> list[Parameter]:
    """Of one rank of pipeline stage `stage`: layers in equal parts, embedding first, norm and head last."""
    first, last = stage == 0, stage == pipeline - 1
    embedding, head = _outside(shape, tensor)
    shared = shape.tied_embeddings and pipeline > 1
    parameters = [Parameter("embedding.word_embeddings.weight", embedding, shared)] if first else []
    layer = _layer(shape, tensor)
    for index in range(shape.num_layers // pipeline):
        parameters += [Parameter(f"decoder.layers.{index}.{name}", size) for name, size in layer]
    if last:
        parameters.append(Parameter("decoder.final_layernorm.weight", shape.hidden_size))
        if head or shared:
            parameters.append(Parameter("output_layer.weight", embedding, shared))
    return parameters


def total_parameters(shape: ModelShape) -> int:
    """Elements of the whole model, each weight once and without padding."""
    return sum(math.prod(size) for size in hf_shapes(shape).values())


@lru_cache(maxsize=64)
def _layer(shape: ModelShape, tensor: int) -> list[tuple[str, int]]:
    sizes = {}
    for entry, whole in _sizes(shape):
        if entry.megatron.startswith("decoder.layers.0."):
            name = entry.megatron.removeprefix("decoder.layers.0.")
            sizes[name] = whole if entry.kind == "replicated" else whole // tensor
    return sorted(sizes.items(), key=lambda item: _place(item[0], shape))


def _place(name: str, shape: ModelShape) -> int:
    """In MODULE_ORDER. Experts share a place: the table has them in order."""
    generic = "mlp.experts." if name.startswith("mlp.experts.") else name
    if generic not in MODULE_ORDER:
        raise ConfigError(f"model.path: `plan` does not know the weight {name} of {shape.family} models")
    return MODULE_ORDER.index(generic)


def _outside(shape: ModelShape, tensor: int) -> tuple[int, bool]:
    """Elements of this rank's rows of the vocabulary, and whether there is a head beside the embedding."""
    return padded_vocab_size(shape.vocab_size, tensor) // tensor * shape.hidden_size, not shape.tied_embeddings


@lru_cache(maxsize=16)
def _sizes(shape: ModelShape) -> list[tuple[WeightEntry, int]]:
    shapes = hf_shapes(shape)
    return [(entry, sum(math.prod(shapes[name]) for name in entry.hf)) for entry in weight_entries(shape, "torch")]
