"""What leaves the trainer for engines and folders is the same bytes at every layout."""

from typing import Any

import pytest

from tests.distributed.launch import run_worlds

# name: (ranks, arguments of the worker)
LAYOUTS = {
    "one rank": (1, (1, 1, False)),
    "tensor 2 x pipeline 2": (4, (2, 2, False)),
    "tensor 2 x pipeline 2, sharded optimizer": (4, (2, 2, True)),
    "tensor 2 x data 2, sharded optimizer": (4, (2, 1, True)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("export")
    worlds = [(ranks, folder / str(index), arguments) for index, (ranks, arguments) in enumerate(LAYOUTS.values())]
    return dict(zip(LAYOUTS, run_worlds("worker_export", worlds), strict=True))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one rank"])
def test_export_is_the_same_bytes(results: dict[str, Any], layout: str) -> None:
    found, one_rank = results[layout], results["one rank"]
    for tied in ("tied False", "tied True"):
        assert found[tied] == one_rank[tied]
        assert list(found[tied]["loaded"]) == list(one_rank[tied]["loaded"])  # in the same order
        changed = {name for name, digest in found[tied]["trained"].items() if digest != found[tied]["loaded"][name]}
        assert changed == set(found[tied]["loaded"])  # the optimizer reached every tensor
    assert ("lm_head.weight" in found["tied False"]["loaded"], "lm_head.weight" in found["tied True"]["loaded"]) == (
        True,
        False,
    )
