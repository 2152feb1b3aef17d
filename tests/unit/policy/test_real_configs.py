"""Published config.json values against published parameter counts, by the table and by megatron-core.

The values are typed in from the models' pages; those that do not shape the weights are left out. The counts are those
that the Hub reads off the headers of a model's safetensors (`safetensors.total` of its model info); in several files,
twice that is `metadata.total_size` of model.safetensors.index.json. Cards round; some count without embeddings too.
"""

from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.policy.fp8 import NO_FP8
from megatron_urpo.policy.hf.regions import whole_shape
from megatron_urpo.policy.hf.shape import ModelShape, parse_shape
from megatron_urpo.policy.hf.table import hf_shapes, weight_entries
from megatron_urpo.policy.model import HiddenStateModel, transformer_config
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.spec import layer_spec

LLAMA31_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}  # fmt: skip


def config(
    family: str, hidden: int, ffn: int, layers: int, heads: int, groups: int, vocabulary: int, **more: Any
) -> Any:
    return {
        "model_type": family, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": vocabulary, "hidden_act": "silu",
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        **more,
    }  # fmt: skip


TIED = {"tie_word_embeddings": True}
WIDE = {"head_dim": 128}
EXPERTS = {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
           "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
LLAMA = {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
# model -> (config.json, parameters that its safetensors hold, billions on its card without embeddings)
PUBLISHED: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "Qwen2.5-0.5B": (config("qwen2", 896, 4864, 24, 14, 2, 151936, **TIED), 494_032_768, 0.36),
    "Qwen2.5-1.5B": (config("qwen2", 1536, 8960, 28, 12, 2, 151936, **TIED), 1_543_714_304, 1.31),
    "Qwen2.5-7B": (config("qwen2", 3584, 18944, 28, 28, 4, 152064), 7_615_616_512, 6.53),
    "Qwen2.5-14B": (config("qwen2", 5120, 13824, 48, 40, 8, 152064), 14_770_033_664, 13.1),
    "Qwen2.5-32B": (config("qwen2", 5120, 27648, 64, 40, 8, 152064), 32_763_876_352, 31.0),
    "Qwen3-0.6B": (config("qwen3", 1024, 3072, 28, 16, 8, 151936, **TIED, **WIDE), 751_632_384, 0.44),
    "Qwen3-8B": (config("qwen3", 4096, 12288, 36, 32, 8, 151936, **WIDE), 8_190_735_360, 6.95),
    "Qwen3-14B": (config("qwen3", 5120, 17408, 40, 40, 8, 151936, **WIDE), 14_768_307_200, 13.2),
    "Qwen3-30B-A3B": (config("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, **WIDE, **EXPERTS), 30_532_122_624, 29.9),
    "Llama-3.1-8B": (config("llama", 4096, 14336, 32, 32, 8, 128256, **LLAMA), 8_030_261_248, None),
}
STORED_TWICE = ("Qwen3-0.6B",)
"""Tied, and published with the embedding once more as `lm_head.weight`: it has 596,049,920 weights."""


def numel(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_that_were_published(model: str) -> None:
    values, stored, without_embeddings = PUBLISHED[model]
    shapes = hf_shapes(parse_shape(values))
    tables = {name: shape for name, shape in shapes.items() if name in ("model.embed_tokens.weight", "lm_head.weight")}
    twice = numel(tables) if model in STORED_TWICE else 0
    assert numel(shapes) + twice == stored
    # Cards give two or three digits, some cut off and not rounded: 1 % is what they say.
    if without_embeddings is not None:
        assert (numel(shapes) - numel(tables)) / 1e9 == pytest.approx(without_embeddings, rel=0.01)


def test_active_parameters_of_the_model_with_experts() -> None:
    """Its card: 3.3B activated."""
    shape = parse_shape(PUBLISHED["Qwen3-30B-A3B"][0])
    experts = {name: size for name, size in hf_shapes(shape).items() if ".experts." in name}
    assert shape.num_experts is not None
    assert shape.experts_per_token is not None
    idle = numel(experts) * (shape.num_experts - shape.experts_per_token) // shape.num_experts
    assert (numel(hf_shapes(shape)) - idle) / 1e9 == pytest.approx(3.3, abs=0.06)


@pytest.mark.parametrize("model", PUBLISHED)
def test_megatron_builds_exactly_these_weights(model: str, one_rank: None) -> None:
    """The model on the meta device has every weight of the table in its shape, and no other."""
    shape = parse_shape(PUBLISHED[model][0])
    built = {name: tuple(parameter.shape) for name, parameter in on_meta(shape).named_parameters()}
    shapes = hf_shapes(shape)
    assert built == {entry.megatron: whole_shape(entry, shapes) for entry in weight_entries(shape, "torch")}


@pytest.fixture(scope="module")
def one_rank() -> Any:
    with joined_ranks(ParallelConfig()):
        yield


def on_meta(shape: ModelShape) -> HiddenStateModel:
    settings: TransformerConfig = transformer_config(shape, ParallelConfig(), NO_FP8, torch.bfloat16)
    settings.perform_initialization = False  # a master copy on the CPU would be drawn otherwise
    with torch.device("meta"):
        return HiddenStateModel(
            settings,
            layer_spec("torch", settings),
            vocab_size=shape.vocab_size,
            max_sequence_length=shape.max_positions,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
        )
