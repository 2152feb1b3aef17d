"""One weight under its three names: Hugging Face's, a Megatron module's, and that of a torch_dist checkpoint.

A family lists the weights of one layer with the functions below (`families/`). `spec` is `torch` (megatron-core's local
layers; experts one after the other) or `te` (Transformer Engine's: norms inside the linears, experts grouped).
torch_dist stacks layers, and experts within them, under one key, whatever the spec; the keys are megatron-core's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_urpo.policy.hf.dimensions import ModelShape

Kind = Literal["replicated", "vocab", "row", "qkv", "gate_up"]
"""How the parts of a weight are joined, and along which axis tensor-parallel ranks share the whole."""


@dataclass(frozen=True)
class WeightEntry:
    """`megatron` is the whole model's name (layers counted over all stages); `hf` the tensors that it holds."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    key: str
    index: tuple[int, ...] = ()
    """Place in the stack under `key`: layer, and expert where there are any."""
    stack: tuple[int, ...] = ()
    """Sizes of that stack."""


@dataclass(frozen=True)
class LayerWeight:
    """The same within one layer; `key` is the module's name unless it says otherwise."""

    name: str
    hf: tuple[str, ...]
    kind: Kind
    key: str = ""
    expert: int | None = None


def attention(shape: ModelShape, spec: str) -> Iterator[LayerWeight]:
    """The norm before attention, attention itself, and biases and norms of queries and keys where the model has any."""
    norm = "self_attention.linear_qkv.layer_norm_weight"
    yield LayerWeight(
        norm if spec == "te" else "input_layernorm.weight", ("input_layernorm.weight",), "replicated", norm
    )
    yield LayerWeight("self_attention.linear_qkv.weight", tuple(f"self_attn.{x}_proj.weight" for x in "qkv"), "qkv")
    yield LayerWeight("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), "row")
    if shape.qkv_bias:
        yield LayerWeight("self_attention.linear_qkv.bias", tuple(f"self_attn.{x}_proj.bias" for x in "qkv"), "qkv")
    if shape.qk_norm:
        yield LayerWeight("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), "replicated")
        yield LayerWeight("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), "replicated")


def dense_mlp(spec: str) -> Iterator[LayerWeight]:
    """The norm before a gated MLP, and the MLP."""
    norm = "mlp.linear_fc1.layer_norm_weight"
    yield LayerWeight(
        norm if spec == "te" else "pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), "replicated", norm
    )
    yield LayerWeight("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), "gate_up")
    yield LayerWeight("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), "row")


def experts(shape: ModelShape, spec: str) -> Iterator[LayerWeight]:
    """The norm before the experts (never fused), the router, and each expert's gated MLP."""
    yield LayerWeight("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), "replicated")
    yield LayerWeight("mlp.router.weight", ("mlp.gate.weight",), "replicated")
    assert shape.num_experts is not None
    for expert in range(shape.num_experts):
        theirs = f"mlp.experts.{expert}."
        for linear, kind, parts in (("linear_fc1", "gate_up", ("gate", "up")), ("linear_fc2", "row", ("down",))):
            grouped, single = (
                f"mlp.experts.{linear}.weight{expert}",
                f"mlp.experts.local_experts.{expert}.{linear}.weight",
            )
            yield LayerWeight(
                grouped if spec == "te" else single,
                tuple(f"{theirs}{part}_proj.weight" for part in parts),
                "gate_up" if kind == "gate_up" else "row",
                f"mlp.experts.experts.{linear}.weight",
                expert,
            )


def whole_model(shape: ModelShape, layer: Iterator[LayerWeight] | list[LayerWeight]) -> list[WeightEntry]:
    """The weights of one `layer`, repeated for all, between embedding and head; in the order of use."""
    weights = list(layer)
    embedding = "embedding.word_embeddings.weight"
    entries = [WeightEntry(embedding, ("model.embed_tokens.weight",), "vocab", embedding)]
    for number in range(shape.num_layers):
        entries += [_in_layer(shape, weight, number) for weight in weights]
    norm = "decoder.final_layernorm.weight"
    entries.append(WeightEntry(norm, ("model.norm.weight",), "replicated", norm))
    if not shape.tied_embeddings:
        entries.append(WeightEntry("output_layer.weight", ("lm_head.weight",), "vocab", "output_layer.weight"))
    return entries


def _in_layer(shape: ModelShape, weight: LayerWeight, number: int) -> WeightEntry:
    index: tuple[int, ...] = (number,)
    stack: tuple[int, ...] = (shape.num_layers,)
    if weight.expert is not None:
        assert shape.num_experts is not None
        index, stack = (number, weight.expert), (shape.num_layers, shape.num_experts)
    return WeightEntry(
        f"decoder.layers.{number}.{weight.name}",
        tuple(f"model.layers.{number}.{name}" for name in weight.hf),
        weight.kind,
        f"decoder.layers.{weight.key or weight.name}",
        index,
        stack,
    )
