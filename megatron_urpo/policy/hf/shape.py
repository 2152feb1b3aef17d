"""What a Hugging Face `config.json` says of a model, read and checked. Neither a GPU nor weights are needed.

What a family adds to its config.json is in `families/`, a file each.
"""

import json
import math
from pathlib import Path
from typing import Any

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape, RopeScaling
from megatron_urpo.policy.hf.families import FAMILIES

__all__ = ["FAMILIES", "ModelShape", "RopeScaling", "check_layout", "parse_shape", "read_shape"]


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`. Raises ConfigError for a folder or a model that cannot be used."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigError(f"model.path: {folder} is not a folder; give a Hugging Face model folder")
    if not path.is_file():
        raise ConfigError(f"model.path: {folder} has no config.json; give a Hugging Face model folder")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ConfigError(f"model.path: {path} holds {type(config).__name__}, not an object; copy it again")
        return parse_shape(config)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.path: {path} is not readable as JSON: {error}") from None
    except KeyError as error:
        raise ConfigError(f"model.path: {path} lacks {error}; a complete Hugging Face config.json has it") from None


def parse_shape(config: dict[str, Any]) -> ModelShape:
    """As `read_shape`, from the parsed config.json. Raises ConfigError or KeyError."""
    name = config.get("model_type", "")
    if name not in FAMILIES:
        raise ConfigError(f"model.path: architecture {name!r} is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[name].shape(config)


def check_layout(shape: ModelShape, tensor: int, pipeline: int) -> None:
    """Raises ConfigError when the model cannot be cut into `tensor` x `pipeline` parts.

    Experts are cut as a dense layer is, each of them: their number divides nothing.
    """
    channels = "feed-forward channels" if shape.num_experts is None else "feed-forward channels of an expert"
    cut = {
        "attention heads": shape.num_heads,
        "key-value groups": shape.num_query_groups,
        channels: shape.ffn_hidden_size,
    }
    for what, number in cut.items():
        if number % tensor:
            raise ConfigError(
                f"parallel.tensor: {tensor} does not divide the model's {number} {what} ({number} / {tensor} ="
                f" {number / tensor:.2f} a rank); choose one of {_divisors(math.gcd(*cut.values()))}"
            )
    if shape.num_layers % pipeline:
        raise ConfigError(
            f"parallel.pipeline: {pipeline} does not divide the model's {shape.num_layers} layers ({shape.num_layers} /"
            f" {pipeline} = {shape.num_layers / pipeline:.2f} a stage); choose one of {_divisors(shape.num_layers)}"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(part) for part in range(1, number + 1) if number % part == 0)
