"""Model shapes, their arithmetic, and what GPUs can do at most."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "num_key_value_heads": 2,
}
# Source: config.json of Qwen/Qwen2.5-0.5B and Qwen/Qwen2.5-1.5B.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": QWEN2
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": QWEN2
    | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"vocab_size": 300},
}

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
}
"""Dense bfloat16 on the tensor cores, TFLOP/s, by a part of the device's name; the first that fits counts.
Source: NVIDIA's data sheets of the H200, H100 and A100 (they print twice as much, with sparsity, for Hopper)."""


def write_model_config(folder: Path, shape: str) -> Path:
    """A Hugging Face folder with config.json alone, for `model.init: random`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
    return folder


def peak_tflops(device_name: str) -> float | None:
    """None for a GPU that the table does not know."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def model_flops(shape: dict[str, Any], lengths: Sequence[tuple[int, int]]) -> float:
    """Of forward and backward over sequences of (tokens, of which predicted); recomputation does not count.

    A matrix of n weights costs 2 n a token forward and 4 n backward. Causal attention multiplies queries by keys and
    weights by values over half a square: 2 T^2 forward for each channel of the queries, and twice that backward. The
    output layer sees only tokens whose successor is predicted. Norms, rotations and softmax are left out.
    """
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    keys_values = 2 * shape["num_key_value_heads"] * hidden // shape["num_attention_heads"]
    weights = layers * hidden * (2 * hidden + keys_values + 3 * shape["intermediate_size"])
    total = 0.0
    for tokens, predicted in lengths:
        total += 6 * weights * tokens + 6 * layers * hidden * tokens**2 + 6 * hidden * shape["vocab_size"] * predicted
    return total
