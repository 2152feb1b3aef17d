"""What ranks say to each other arrives, errors included, and a shared vocabulary gives one rank's numbers."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    found: list[dict[str, Any]] = run_ranks("worker_ranks", 2, folder)
    return found


def test_an_error_of_rank_0_reaches_every_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["caught"] == "LookupError: rank 0 looked in vain"
    assert ranks[1]["caught"] == "RankZeroError: LookupError: rank 0 looked in vain"


def test_results_and_flags_reach_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["from_rank0"] == "told by 0"
        assert rank["any"] == [True, False]
        assert rank["gather"] == [0, 10]


@pytest.mark.parametrize("name", ["logprob", "entropy"])
def test_a_shared_vocabulary_gives_the_numbers_of_whole_logits(ranks: list[dict[str, Any]], name: str) -> None:
    """Sums over 101 words are added in another order: 101 terms of size up to about 16 round to 101 * 16 * 1.2e-7."""
    for rank in ranks:
        assert rank[name] < 101 * 16 * 1.2e-7


@pytest.mark.parametrize("name", ["grad_hidden", "grad_weight"])
def test_a_shared_vocabulary_gives_the_gradients_of_whole_logits(ranks: list[dict[str, Any]], name: str) -> None:
    """The one-rank case is in tests/unit/policy/test_logprobs.py."""
    for rank in ranks:
        assert rank[name] < 1e-6
