"""Predicted bytes of weights, gradients and optimizer are those that ranks allocate, to the byte."""

import json
from pathlib import Path
from typing import Any

from tests.distributed.launch import run_worlds

# Sizes that are no multiple of 64 or 128, so that every rule of padding matters; an odd vocabulary; with and without
# biases, norms of queries and keys, experts, and an embedding that is the head as well.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 10},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 22,
    },
}
COMMON = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 127, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "head_dim": 10,
}  # fmt: skip


def test_bytes_are_those_that_are_allocated(tmp_path: Path) -> None:
    """Each of them at one rank; at TP 2, DP 2 and, without experts, PP 2 on either rank."""
    for name, values in MODELS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**COMMON, **values}))
    models = [str(tmp_path / name) for name in MODELS]
    one, two = run_worlds("worker_plan", [(ranks, tmp_path / f"{ranks} ranks", models) for ranks in (1, 2)])
    assert (len(one), len(two)) == (12, 64)
    assert [row for row in one + two if row["predicted"] != row["allocated"] or not row["names"]] == []
