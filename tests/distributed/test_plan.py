"""Predicted bytes of weights, gradients and optimizer are those that ranks allocate, to the byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run_ranks

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


@pytest.mark.parametrize(("num_ranks", "cases"), [(1, 12), (2, 64)])
def test_bytes_are_those_that_are_allocated(tmp_path: Path, num_ranks: int, cases: int) -> None:
    """Each of them at one rank; at TP 2, DP 2 and, without experts, PP 2 on either rank."""
    for name, values in MODELS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**COMMON, **values}))
    found = run_ranks("worker_plan", num_ranks, tmp_path / "out", *(str(tmp_path / name) for name in MODELS))
    assert len(found) == cases
    assert [row for row in found if row["predicted"] != row["allocated"] or not row["names"]] == []
