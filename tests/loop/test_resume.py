"""A run that was stopped and goes on equals a run that was left alone: every number, text and weight, bit for bit."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.loop.runs import CONFIG, environment, metrics, train, transcripts, weights
from tests.support.miniature import ROOT, Miniature

STEPS = 4
VALUES = {
    "num_steps": STEPS,
    "data.curriculum": "[{until: 2, mix: {preference: 1, reasoning: 1}}, {mix: {preference: 1, instruction: 1}}]",
}
SAVING = {**VALUES, "checkpoint.every": 1, "checkpoint.keep_last": STEPS}


@pytest.fixture(scope="module")
def unbroken(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(miniature, tmp_path_factory.mktemp("unbroken") / "run", **VALUES)


@pytest.fixture(scope="module")
def saved(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(miniature, tmp_path_factory.mktemp("saved") / "run", **SAVING)


def assert_same(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert transcripts(run) == transcripts(other)
    ours, theirs = weights(run), weights(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_repeats_itself_and_saving_changes_nothing(unbroken: Path, saved: Path) -> None:
    assert_same(saved, unbroken)
    assert [path.name for path in sorted((saved / "checkpoints").iterdir())] == [
        f"step_{step:06d}" for step in range(1, STEPS + 1)
    ]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_resumed_after_any_step_equals_unbroken(
    miniature: Miniature, unbroken: Path, saved: Path, tmp_path: Path, kept: int
) -> None:
    """The later checkpoints are gone, as if the run had died before it had saved them; its lines are still there."""
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    shutil.rmtree(run / "model")
    for step in range(kept + 1, STEPS + 1):
        folder = run / "checkpoints" / f"step_{step:06d}"
        folder.rename(folder.with_name(folder.name + ".unfinished"))  # what a crash while saving leaves
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "torn')
    train(miniature, run, **VALUES)
    assert_same(run, unbroken)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_no_process(
    miniature: Miniature, unbroken: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_urpo.cli", "train", str(CONFIG), *miniature.overrides(run, **VALUES)],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = run / "metrics.jsonl"
    while not lines.exists() or len(lines.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    parent = psutil.Process(process.pid)
    children = set(parent.children(recursive=True))
    process.send_signal(number)
    while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
        children |= set(parent.children(recursive=True))
        time.sleep(0.02)
    assert process.wait() == exit_code
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert [path.suffix for path in (run / "checkpoints").iterdir()] == [""]
    train(miniature, run, **VALUES)
    assert_same(run, unbroken)
