"""What the rest of the project knows of a model, in one record, and the part of it that all families share."""

from dataclasses import dataclass
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
    """A decoder-only transformer with RMSNorm, SwiGLU, grouped-query attention and rotary positions.

    With experts `ffn_hidden_size` is that of one expert, and every layer has them.
    """

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
    num_experts: int | None = None
    experts_per_token: int | None = None
    normalized_router: bool | None = None
    """Whether the weights of the chosen experts sum to one."""

    @property
    def active_ffn_size(self) -> int:
        """Feed-forward channels that one token passes through."""
        return self.ffn_hidden_size * (self.experts_per_token or 1)


def decoder_shape(config: dict[str, Any], **traits: Any) -> ModelShape:
    """The shape that a config.json spells out; `traits` are what the family's code adds. Raises ConfigError, KeyError.

    A family without a trait that its config asks for (biases, sliding windows) is refused, not approximated.
    """
    family = config["model_type"]
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise ConfigError(
                f"model.path: config.json sets {key}: {config[key]!r}, which {family} models here cannot have"
            )
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"model.path: config.json sets hidden_act: {config['hidden_act']!r}; only silu is supported")
    heads = config["num_attention_heads"]
    theta, scaling = _read_rope(config)
    values: dict[str, Any] = {
        "family": family,
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_heads": heads,
        "num_query_groups": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "vocab_size": config["vocab_size"],
        "max_positions": config["max_position_embeddings"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "initializer_range": config.get("initializer_range", 0.02),
    }
    return ModelShape(**{**values, **traits})


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
