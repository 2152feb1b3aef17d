"""Qwen3 with experts in every layer (Qwen3-30B-A3B): attention as in Qwen3, then a router and gated experts."""

from collections.abc import Iterator
from typing import Any

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape, decoder_shape
from megatron_urpo.policy.hf.entries import LayerWeight, attention, experts


def shape(config: dict[str, Any]) -> ModelShape:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(
            f"model.path: config.json has layers without experts (mlp_only_layers {config.get('mlp_only_layers')!r},"
            f" decoder_sparse_step {config.get('decoder_sparse_step')!r}); only models with experts in every layer are"
            " supported"
        )
    # transformers 5 renames `num_experts`, as published, to `num_local_experts` when it saves.
    count = config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]
    if not 1 <= config["num_experts_per_tok"] <= count:
        raise ConfigError(
            f"model.path: config.json sends a token to num_experts_per_tok {config['num_experts_per_tok']} of {count}"
            " experts; it must be 1 or more, and no more than there are: copy the file again"
        )
    return decoder_shape(
        config,
        qkv_bias=False,
        qk_norm=True,
        ffn_hidden_size=config["moe_intermediate_size"],
        num_experts=count,
        experts_per_token=config["num_experts_per_tok"],
        normalized_router=bool(config.get("norm_topk_prob", False)),
    )


def layer(shape: ModelShape, spec: str) -> Iterator[LayerWeight]:
    yield from attention(shape, spec)
    yield from experts(shape, spec)
