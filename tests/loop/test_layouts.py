"""The whole loop gives the same numbers at every layout: all three tasks, three steps, one engine on rank 0."""

from pathlib import Path
from typing import Any

import pytest

from tests.loop.runs import CONFIG, metrics, torchrun, train, train_on_ranks, transcripts, weights
from tests.support.miniature import Miniature

# layout: (ranks, values)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tensor 2": (2, {"parallel.tensor": 2, "parallel.sequence": "true"}),
    "pipeline 2": (2, {"parallel.pipeline": 2}),
    "data 2": (2, {}),
    "tensor 2 x pipeline 2": (4, {"parallel.tensor": 2, "parallel.pipeline": 2}),
    "small bins, plain optimizer": (
        1, {"parallel.distributed_optimizer": "false", "loss.max_tokens_per_micro_batch": 196},
    ),
}  # fmt: skip
# How samples are spread is what a layout changes; everything else must agree.
ABOUT_THE_LAYOUT = {"batch/micro_batches", "tokens/padding_fraction"}


@pytest.fixture(scope="module")
def runs(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every layout's run; those on two ranks share a launch, that on four is started as a user does."""
    folder = tmp_path_factory.mktemp("layouts")
    paths = {name: folder / str(index) for index, name in enumerate(LAYOUTS)}
    pairs = []
    for name, (count, layout) in LAYOUTS.items():
        overrides = miniature.overrides(paths[name], num_steps=3, **layout)
        if count == 1:
            train(miniature, paths[name], num_steps=3, **layout)
        elif count == 2:
            pairs.append((count, overrides))
        else:
            torchrun(count, "train", str(CONFIG), *overrides)
    train_on_ranks(folder / "pairs", pairs)
    return paths


def test_the_run_has_every_task_and_a_signal(runs: dict[str, Path]) -> None:
    lines = metrics(runs["one"])
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines[1:]:
        assert {f"reward/mean/{task}" for task in ("reasoning", "preference", "instruction")} <= set(line)
        assert line["tokens/train"] > 0
        assert line["mismatch/max"] < 1e-4  # the engine and the trainer agree on every sampled token


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_same_metrics_and_weights(runs: dict[str, Path], layout: str) -> None:
    run, one = runs[layout], runs["one"]
    for line, want in zip(metrics(run), metrics(one), strict=True):
        assert set(line) == set(want)
        for name in set(want) - ABOUT_THE_LAYOUT:
            assert line[name] == pytest.approx(want[name], abs=1e-4), name
    assert transcripts(run) == transcripts(one)  # the same completions, verdicts, rewards and advantages
    for name, tensor in weights(one).items():
        assert (weights(run)[name] - tensor).abs().max() < 1e-4, name


def test_layouts_really_differ(runs: dict[str, Path]) -> None:
    assert metrics(runs["small bins, plain optimizer"])[1]["batch/micro_batches"] > 2
    assert metrics(runs["one"])[1]["batch/micro_batches"] == 1
    assert metrics(runs["data 2"])[1]["batch/micro_batches"] == 2
