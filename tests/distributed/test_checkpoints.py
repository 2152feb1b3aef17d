"""Converted checkpoints at several layouts, on real ranks; and a checkpoint of four ranks on its way back."""

from typing import Any

import pytest

from tests.distributed.launch import run_ranks

CASES = [f"{family} {layout}" for layout in ("4x1", "2x2", "2x1", "1x2") for family in ("qwen3", "qwen2")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks("worker_checkpoints", 4, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("case", [*CASES, "qwen3_moe 2x1"])
def test_every_layout_reads_the_same_weights(found: Any, case: str) -> None:
    """qwen2 has tied embeddings; the vocabulary is odd."""
    assert found[case]["exported"]
    assert found[case]["from shards"]
    assert found[case]["shards"], "a rank's file is not what a rank holds"
    assert found[case]["gap"] < 1e-4


@pytest.mark.parametrize("case", ["qwen3 2x2", "qwen2 2x2", "qwen3_moe 2x1"])
def test_megatron_core_itself_loads_what_was_converted(found: Any, case: str) -> None:
    assert found[case]["by megatron-core"]


def test_a_run_checkpoint_of_four_ranks_goes_back(found: Any) -> None:
    assert found["qwen3 2x2"]["saved"] == []
