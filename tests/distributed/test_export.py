"""What leaves the trainer for engines and folders is the same bytes at every layout."""

from typing import Any

import pytest

from tests.distributed.launch import run_ranks

LAYOUTS = {
    "tensor 2 x pipeline 2": (4, ("2", "2", "whole")),
    "tensor 2 x pipeline 2, sharded optimizer": (4, ("2", "2", "sharded")),
    "tensor 2 x data 2, sharded optimizer": (4, ("2", "1", "sharded")),
}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks("worker_export", 1, tmp_path_factory.mktemp("export"), "1", "1", "whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_is_the_same_bytes(layout: str, one_rank: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    num_ranks, arguments = LAYOUTS[layout]
    found = run_ranks("worker_export", num_ranks, tmp_path_factory.mktemp("export"), *arguments)
    for tied in ("tied False", "tied True"):
        assert found[tied] == one_rank[tied]
        assert list(found[tied]["loaded"]) == list(one_rank[tied]["loaded"])  # in the same order
        changed = {name for name, digest in found[tied]["trained"].items() if digest != found[tied]["loaded"][name]}
        assert changed == set(found[tied]["loaded"])  # the optimizer reached every tensor
    assert ("lm_head.weight" in found["tied False"]["loaded"], "lm_head.weight" in found["tied True"]["loaded"]) == (
        True,
        False,
    )
