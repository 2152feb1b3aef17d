"""Qwen3, dense: norms on queries and keys; head_dim is given, and not hidden_size / heads."""

from collections.abc import Iterator
from typing import Any

from megatron_urpo.policy.hf.dimensions import ModelShape, decoder_shape
from megatron_urpo.policy.hf.entries import LayerWeight, attention, dense_mlp


def shape(config: dict[str, Any]) -> ModelShape:
    return decoder_shape(config, qkv_bias=False, qk_norm=True)


def layer(shape: ModelShape, spec: str) -> Iterator[LayerWeight]:
    yield from attention(shape, spec)
    yield from dense_mlp(spec)
