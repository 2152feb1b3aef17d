"""Runs that are ended by a signal at a chosen moment, gone on with, and compared with a run that was left alone.

A moment is known by what appears in the run folder, so that the code under test is the real one: nothing is slowed down
or patched. Where the signal really hit is read from what the run left behind.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.loop.runs import CONFIG, environment, metrics, transcripts, weights
from tests.support.miniature import ROOT, Miniature

STEPS = 5
VALUES = {
    "num_steps": STEPS,
    "checkpoint.every": 1,
    "data.curriculum": "[{until: 2, mix: {preference: 1, reasoning: 1}}, {mix: {preference: 1, instruction: 1}}]",
}
PATIENCE_SECONDS = 600
ATTEMPTS = 6


@dataclass(frozen=True)
class Moment:
    """The signal is sent up to `spread` seconds after `name` of step k appears in the run folder."""

    label: str
    name: Callable[[int], str]
    spread: float


UNFINISHED = "checkpoints/step_{:06d}.unfinished"
MOMENTS = (
    Moment("start", lambda k: "run.lock", 1.0),
    # A save is written while the next step is collected.
    Moment("rollout", lambda k: f"{UNFINISHED.format(k)}/policy/__0_0.distcp", 0.3),
    Moment("update", lambda k: f"batches/step_{k:06d}.npz", 0.2),
    Moment("record", lambda k: f"transcripts/step_{k:06d}.jsonl", 0.002),
    Moment("save: copy", UNFINISHED.format, 0.002),
    Moment("save: write", lambda k: f"{UNFINISHED.format(k)}/policy/__0_0.distcp", 0.02),
    Moment("save: parts", lambda k: f"{UNFINISHED.format(k)}/random/rank_00000.safetensors", 0.002),
    Moment("save: commit", lambda k: f"{UNFINISHED.format(k)}/state.json", 0.004),
    Moment("save: rename", lambda k: f"{UNFINISHED.format(k)}/manifest.json", 0.002),
    Moment("save: prune", lambda k: f"checkpoints/step_{k:06d}", 0.004),
)


def arguments(miniature: Miniature, run: Path) -> list[str]:
    return [sys.executable, "-m", "megatron_urpo.cli", "train", str(CONFIG), *miniature.overrides(run, **VALUES)]


def moment_of(seed: int) -> tuple[Moment, int, float]:
    """(moment, step, delay): the moments in turn, the rest drawn from the seed."""
    draw = random.Random(seed)
    moment = MOMENTS[seed % len(MOMENTS)]
    return moment, draw.randint(1, STEPS - 1), draw.uniform(0, moment.spread)


def end_at(miniature: Miniature, run: Path, seed: int, number: signal.Signals) -> tuple[int, str]:
    """Starts a run and sends it `number` at the seed's moment; its exit code, and where it was hit.

    A file that lives for a millisecond can be missed on a busy machine; the moment then is that of the next step, and
    where all are missed the run is started anew.
    """
    for _ in range(ATTEMPTS):
        code = _end_once(miniature, run, *moment_of(seed), number)
        if code is not None:
            return code, hit(run)
        shutil.rmtree(run)
    raise AssertionError(f"{moment_of(seed)[0].label} was not seen in {ATTEMPTS} runs")


def _end_once(
    miniature: Miniature, run: Path, moment: Moment, step: int, delay: float, number: signal.Signals
) -> int | None:
    """None where the run came to its end before the moment was seen."""
    process = subprocess.Popen(
        arguments(miniature, run), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        names = [str(run / moment.name(k)) for k in range(step, STEPS + 1)]
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not any(map(os.path.exists, names)):
            if process.poll() is not None:
                assert process.returncode == 0
                return None
            assert time.monotonic() < give_up
        time.sleep(delay)
        process.send_signal(number)
        code = process.wait(PATIENCE_SECONDS)
        return None if code == 0 else code
    finally:
        process.kill()
        process.wait()


def go_on(miniature: Miniature, run: Path) -> None:
    """The same command once more, to the end."""
    done = subprocess.run(
        arguments(miniature, run), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]


def hit(run: Path) -> str:
    """What the folder of a run that was killed tells of the moment."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines() if (run / "metrics.jsonl").exists() else []
    place = f"{len(lines) - 1} steps recorded" if lines else "nothing recorded"
    batches = sorted((run / "batches").glob("*.npz")) if (run / "batches").exists() else []
    if batches and int(batches[-1].stem.removeprefix("step_")) >= len(lines):
        place += ", in an update"
    for folder in sorted((run / "checkpoints").glob("step_*.*")):
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        place += f", {folder.name}: {' '.join(files) or 'empty'} ({size} bytes)"
    return place


def last_state(run: Path) -> dict[str, object]:
    """Of the last checkpoint: schedule and settings, and checksums of weights, optimizer, random states and stream.

    `.metadata` holds a random id of its save, and equal values of `common.pt` may have another order.
    """
    folder = run / "checkpoints" / f"step_{STEPS:06d}"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    common = torch.load(folder / "policy" / "common.pt", weights_only=True)
    return {**files, "policy/.metadata": None, "policy/common.pt": common}


def assert_same(run: Path, other: Path) -> None:
    """Every number, text, weight and bit of state."""
    assert metrics(run) == metrics(other), "metrics.jsonl"
    assert transcripts(run) == transcripts(other), "transcripts"
    assert last_state(run) == last_state(other), "the last checkpoint"
    ours, theirs = weights(run), weights(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    kept = [[path.name for path in sorted((folder / "checkpoints").iterdir())] for folder in (run, other)]
    assert kept[0] == kept[1], "checkpoints"
    assert not (run / "run.lock").exists(), "run.lock"
