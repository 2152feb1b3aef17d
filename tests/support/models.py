"""Small random models of every family, made with transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config, Qwen3MoeConfig

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 127,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-6,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {
    "head_dim": 32,
    "moe_intermediate_size": 48,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
FAMILIES = {
    "qwen2": lambda **kw: Qwen2Config(**{**COMMON, **kw}),
    "qwen3": lambda **kw: Qwen3Config(**{**COMMON, "head_dim": 32, **kw}),
    "llama": lambda **kw: LlamaConfig(**{**COMMON, "rope_parameters": LLAMA3_ROPE, **kw}),
    "qwen3_moe": lambda **kw: Qwen3MoeConfig(**{**COMMON, **EXPERTS, **kw}),
}

DENSE = tuple(family for family in FAMILIES if family != "qwen3_moe")
"""Those that megatron-core computes on CPUs at every layout."""


def make_model(folder: Path, family: str, *, tied: bool = False, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Writes a model of `family` with no weight left at its (often trivial) initial value, and returns it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        FAMILIES[family](tie_word_embeddings=tied, **settings), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model.eval()
