"""Layouts that a model cannot be cut into, and configs of experts that make no sense: one line with the way out."""

from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.config import ConfigError
from megatron_urpo.config.model import Fp8Config, ModelConfig, ParallelConfig
from megatron_urpo.conversion.convert import Layout, hf_to_megatron
from megatron_urpo.policy.experts import check_experts
from megatron_urpo.policy.hf.shape import check_layout, parse_shape, read_shape
from megatron_urpo.preflight.inputs import check_model
from tests.support.models import FAMILIES, make_model

PARTS: dict[str, dict[str, int]] = {
    "qwen2": {"hidden_size": 72, "num_attention_heads": 12, "num_key_value_heads": 6, "num_hidden_layers": 6,
              "intermediate_size": 120},
}  # fmt: skip
# A rank holds a part of every expert, so that their number has no say: here it is a prime.
PARTS["qwen3_moe"] = {**PARTS["qwen2"], "moe_intermediate_size": 50, "num_experts": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family, parts in PARTS.items():
        make_model(folder / family, family, **parts)
    return folder


@pytest.mark.parametrize(
    ("family", "tensor", "pipeline", "rule"),
    [
        ("qwen2", 5, 1, "12 attention heads (12 / 5 = 2.40 a rank); choose one of 1, 2, 3, 6"),
        ("qwen2", 4, 1, "6 key-value groups (6 / 4 = 1.50 a rank); choose one of 1, 2, 3, 6"),
        ("qwen2", 1, 4, "6 layers (6 / 4 = 1.50 a stage); choose one of 1, 2, 3, 6"),
        ("qwen3_moe", 4, 1, "6 key-value groups (6 / 4 = 1.50 a rank); choose one of 1, 2"),
        ("qwen3_moe", 3, 1, "50 feed-forward channels of an expert (50 / 3 = 16.67 a rank); choose one of 1, 2"),
        ("qwen3_moe", 2, 4, "6 layers (6 / 4 = 1.50 a stage); choose one of 1, 2, 3, 6"),
    ],
)
def test_what_does_not_divide(models: Path, tmp_path: Path, family: str, tensor: int, pipeline: int, rule: str) -> None:
    """The same line for who trains and for who converts, before a process group is made or a file written."""
    model = models / family
    check_layout(read_shape(model), 2, 3)
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline, sequence=tensor > 1)
    with pytest.raises(ConfigError) as trained:
        check_model(ModelConfig(path=model), layout, Fp8Config())
    field, option, number = ("pipeline", "pp", pipeline) if "layers" in rule else ("tensor", "tp", tensor)
    assert str(trained.value) == f"parallel.{field}: {number} does not divide the model's {rule}"
    with pytest.raises(ConfigError) as converted:
        hf_to_megatron(model, tmp_path / "out", Layout("shards", tensor, pipeline))
    assert str(converted.value) == f"--{option}: {number} does not divide the model's {rule}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        (ParallelConfig(tensor=2), r"parallel\.sequence: must be true .* at parallel\.tensor 2, .*; set it, or"),
        (
            ParallelConfig(pipeline=2),
            r"parallel\.pipeline: 2 stages of a model with experts need a GPU: .*; set it to 1",
        ),
    ],
)
def test_what_layers_with_experts_cannot_do(layout: ParallelConfig, part: str) -> None:
    check_experts(parse_shape(FAMILIES["qwen2"]().to_dict()), layout, on_gpu=False)
    with pytest.raises(ConfigError, match=part):
        check_experts(parse_shape(FAMILIES["qwen3_moe"]().to_dict()), layout, on_gpu=False)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 of 4 experts; it must be 1 or more, and no more"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok 0 of 4 experts"),
        ({"mlp_only_layers": [1]}, r"layers without experts \(mlp_only_layers \[1\]"),
        ({"decoder_sparse_step": 2}, "layers without experts .*decoder_sparse_step 2"),
    ],
)
def test_experts_that_no_layer_can_have(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse_shape(FAMILIES["qwen3_moe"]().to_dict() | change)
