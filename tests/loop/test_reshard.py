"""A run that goes on at another layout, optimizer state and all, continues as at its own: 1e-5 in the loss.

The loss of the miniature is a mean of terms of about 1 that nearly cancel, so the tolerance is absolute.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.policy.parallel import close_parallel
from tests.loop.runs import metrics, train, train_on_ranks
from tests.support.miniature import Miniature

HALF, STEPS = 2, 4
VALUES = {"num_steps": STEPS, "checkpoint.every": HALF, "checkpoint.keep_last": 9}
TENSOR = {"parallel.tensor": 2}
BOTH = {"parallel.tensor": 2, "parallel.pipeline": 2}


@pytest.fixture(autouse=True)
def _leave_process_groups() -> Iterator[None]:
    yield
    close_parallel()


def half_of(run: Path, copy: Path) -> Path:
    """The run as it was after half of its steps."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:06d}")
    shutil.rmtree(copy / "model")
    return copy


@pytest.fixture(scope="module")
def pairs(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(the run at its own layout to the end, the same from its half on at another one)."""
    folder = tmp_path_factory.mktemp("reshard")

    def overrides(run: Path, layout: dict[str, Any]) -> list[str]:
        return miniature.overrides(run, **VALUES, **layout)

    one = train(miniature, folder / "one", **VALUES)
    to_tensor = half_of(one, folder / "one-to-tensor")
    data, both = folder / "data", folder / "both"
    runs = [(2, overrides(to_tensor, TENSOR)), (2, overrides(data, {})), (4, overrides(both, BOTH))]
    train_on_ranks(folder / "ranks", runs)
    from_data, from_both = half_of(data, folder / "data-to-one"), half_of(both, folder / "both-to-one")
    for run in (from_data, from_both):
        train(miniature, run, **VALUES)
    return {
        "tensor 1 to 2": (one, to_tensor),
        "data 2 to 1": (data, from_data),
        "tensor 2 x pipeline 2 to 1": (both, from_both),
    }


@pytest.mark.parametrize("change", ["tensor 1 to 2", "data 2 to 1", "tensor 2 x pipeline 2 to 1"])
def test_it_continues_as_at_its_own_layout(pairs: dict[str, tuple[Path, Path]], change: str) -> None:
    own, other = (metrics(run) for run in pairs[change])
    assert [line["step"] for line in other] == list(range(STEPS + 1))
    assert other[: HALF + 1] == own[: HALF + 1]
    for line, want in zip(other[HALF + 1 :], own[HALF + 1 :], strict=True):
        for name in ("policy/loss", "policy/entropy", "mismatch/kl"):
            assert line[name] == pytest.approx(want[name], abs=1e-5), name
        assert line["policy/grad_norm"] == pytest.approx(want["policy/grad_norm"], rel=1e-4)
        assert line["tokens/train"] == want["tokens/train"]  # the same completions
