"""FP8 settings reach megatron-core, and what cannot be is one line. Nothing here multiplies in FP8."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core.enums import Fp8Recipe

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.config.model import Fp8Config, ModelConfig, ParallelConfig
from megatron_urpo.policy.fp8 import NO_FP8, check_fp8
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.model import transformer_config
from megatron_urpo.preflight.inputs import check_model
from megatron_urpo.preflight.lengths import check_lengths
from tests.support.models import make_model

QWEN_0_5B = ModelShape(
    family="qwen2", num_layers=24, hidden_size=896, ffn_hidden_size=4864, num_heads=14, num_query_groups=2, head_dim=64,
    vocab_size=151936, max_positions=32768, norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, tied_embeddings=True,
    qkv_bias=True, qk_norm=False, initializer_range=0.02,
)  # fmt: skip
MODEL = ModelConfig(path=Path("m"), spec="te")


@pytest.mark.parametrize("name", ["e4m3", "hybrid"])
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_the_config_reaches_megatron_core(name: str, recipe: str) -> None:
    fp8 = Fp8Config(format=name, recipe=recipe)
    config = transformer_config(QWEN_0_5B, ParallelConfig(recompute="selective"), fp8, torch.bfloat16)
    assert config.fp8 == name
    assert config.fp8_recipe == Fp8Recipe(recipe)
    assert not config.fp8_param  # weights stay in bfloat16: export and checkpoints know of nothing else
    check_fp8(fp8, MODEL, ParallelConfig(), QWEN_0_5B, "te")  # its dimensions are whole tiles of 128


def test_off_by_default() -> None:
    assert Fp8Config() == Fp8Config(format="none", recipe="tensorwise")
    assert transformer_config(QWEN_0_5B, ParallelConfig(), Fp8Config(), torch.float32).fp8 is None
    check_fp8(NO_FP8, ModelConfig(path=Path("m"), dtype="float32"), ParallelConfig(), QWEN_0_5B, "torch")


@pytest.mark.parametrize(
    ("model", "tensor", "spec", "recipe", "parts"),
    [
        ({"dtype": "float32"}, 1, "te", "tensorwise", ["fp8.format: hybrid", "model.dtype float32", "to bfloat16"]),
        ({"spec": "torch"}, 1, "torch", "tensorwise", ["fp8.format: hybrid", "model.spec torch", "chosen", "to `te`"]),
        ({"spec": "auto"}, 1, "torch", "tensorwise", ["model.spec auto", "without Transformer Engine"]),
        # 14 + 2 + 2 heads of 64 channels over two ranks: 576 are 4.5 blocks of 128, but 36 sixteens.
        ({}, 2, "te", "blockwise", ["fp8.recipe: blockwise", "576 query", "576 / 128 = 4.50", "parallel.tensor 2"]),
    ],
)
def test_refusals_are_one_line(model: dict[str, str], tensor: int, spec: str, recipe: str, parts: list[str]) -> None:
    fp8, layout = Fp8Config(format="hybrid", recipe=recipe), ParallelConfig(tensor=tensor)
    with pytest.raises(ConfigError) as caught:
        check_fp8(fp8, MODEL.model_copy(update=model), layout, QWEN_0_5B, spec)
    assert len(str(caught.value).splitlines()) == 1
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hidden_size": 904}, "904 hidden"),
        ({"num_heads": 4, "num_query_groups": 1, "head_dim": 4}, "24 query, key and value"),
        ({"num_heads": 2, "num_query_groups": 1, "head_dim": 4}, "8 attention output"),
        ({"ffn_hidden_size": 4872}, "4872 feed-forward"),
    ],
)
def test_every_dimension_of_the_products_is_looked_at(change: dict[str, int], what: str) -> None:
    with pytest.raises(ConfigError, match=f"tiles of 16, but the model's {what}"):
        check_fp8(Fp8Config(format="e4m3"), MODEL, ParallelConfig(), replace(QWEN_0_5B, **change), "te")


def test_a_micro_batch_must_hold_the_longest_sample_and_its_padding() -> None:
    def config(max_tokens: int) -> Config:
        lengths = {"max_prompt_tokens": 1000, "max_new_tokens": 1000}
        return Config.model_validate(
            {
                "run_dir": "r", "model": {"path": "m"}, "data": {"train": ["t"]}, "rollout": lengths,
                "referee": lengths, "fp8": {"format": "hybrid", "recipe": "blockwise"},
                "loss": {"max_tokens_per_micro_batch": max_tokens},
            }
        )  # fmt: skip

    check_lengths(config(2048), QWEN_0_5B)
    with pytest.raises(ConfigError, match=r"2047 is below .* \+ 48 of padding = 2048"):
        check_lengths(config(2047), QWEN_0_5B)


def test_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """On a machine without a GPU the layers are the torch ones."""
    make_model(tmp_path, "qwen2")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"fp8.format: e4m3 needs Transformer Engine's layers, but model.spec auto"):
        check_model(ModelConfig(path=tmp_path), ParallelConfig(), Fp8Config(format="e4m3"))
