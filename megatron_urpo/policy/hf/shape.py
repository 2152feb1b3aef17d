"""What a Hugging Face `config.json` says of a model, in one record. Reading it needs neither a GPU nor weights.

A new family is an entry in FAMILIES: the traits that its code has but its config.json does not spell out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_urpo.config import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with RMSNorm, SwiGLU, grouped-query attention and rotary positions."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    initializer_range: float


@dataclass(frozen=True)
class _Family:
    qkv_bias: bool
    qk_norm: bool


FAMILIES = {
    "qwen2": _Family(qkv_bias=True, qk_norm=False),
    "qwen3": _Family(qkv_bias=False, qk_norm=True),
    "llama": _Family(qkv_bias=False, qk_norm=False),
}


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`. Raises ConfigError for a folder or a model that cannot be used."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigError(f"model.path: {folder} is not a folder; give a Hugging Face model folder")
    if not path.is_file():
        raise ConfigError(f"model.path: {folder} has no config.json; give a Hugging Face model folder")
    try:
        return parse_shape(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ConfigError(f"model.path: {path} is not readable as JSON: {error}") from None
    except KeyError as error:
        raise ConfigError(f"model.path: {path} lacks {error}; a complete Hugging Face config.json has it") from None


def parse_shape(config: dict[str, Any]) -> ModelShape:
    """As `read_shape`, from the parsed config.json. Raises ConfigError or KeyError."""
    name = config.get("model_type", "")
    if name not in FAMILIES:
        raise ConfigError(f"model.path: architecture {name!r} is not supported; known: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise ConfigError(
                f"model.path: config.json sets {key}: {config[key]!r}, which {name} models here cannot have"
            )
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"model.path: config.json sets hidden_act: {config['hidden_act']!r}; only silu is supported")
    heads = config["num_attention_heads"]
    theta, scaling = _read_rope(config)
    return ModelShape(
        family=name,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        initializer_range=config.get("initializer_range", 0.02),
    )


def _read_rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """transformers 5 writes `rope_parameters`; earlier ones `rope_theta` and `rope_scaling`."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"model.path: config.json asks for rope_type {kind!r}; `default` and `llama3` are supported")
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def check_layout(shape: ModelShape, tensor: int, pipeline: int) -> None:
    """Raises ConfigError when the model cannot be cut into `tensor` x `pipeline` parts."""
    for what, number in (
        ("attention heads", shape.num_heads),
        ("key-value groups", shape.num_query_groups),
        ("feed-forward channels", shape.ffn_hidden_size),
    ):
        if number % tensor:
            raise ConfigError(
                f"parallel.tensor: {tensor} does not divide the model's {number} {what}"
                f" ({number} / {tensor} = {number / tensor:.2f} a rank); choose a divisor of {number}"
            )
    if shape.num_layers % pipeline:
        raise ConfigError(
            f"parallel.pipeline: {pipeline} does not divide the model's {shape.num_layers} layers"
            f" ({shape.num_layers} / {pipeline} = {shape.num_layers / pipeline:.2f} a stage); choose a divisor of"
            f" {shape.num_layers}"
        )
