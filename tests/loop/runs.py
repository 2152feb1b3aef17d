"""Runs of the miniature and what they left behind, without what a clock writes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_urpo.config import load_config
from megatron_urpo.train import train as train_here
from tests.distributed.launch import run_worlds, write_result
from tests.support.miniature import ROOT, Miniature

CONFIG = ROOT / "examples" / "miniature" / "config.yaml"


def train(miniature: Miniature, run_dir: Path, **values: Any) -> Path:
    """One run in this process, on one thread so that its numbers repeat."""
    torch.set_num_threads(1)
    assert train_here(*load_config(CONFIG, miniature.overrides(run_dir, **values))) == 0
    return run_dir


def train_on_ranks(folder: Path, runs: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Several runs one after the other, each with its number of ranks and its overrides; `folder` takes the log."""
    worlds = [(num_ranks, folder / f"world_{index}", overrides) for index, (num_ranks, overrides) in enumerate(runs)]
    assert run_worlds("runs", worlds, package="tests.loop") == [0] * len(runs)


def main(folder: Path, *overrides: str) -> None:
    """One rank of `train_on_ranks`."""
    code = train_here(*load_config(CONFIG, overrides))
    assert code == 0
    if os.environ["RANK"] == "0":
        write_result(folder, code)


def torchrun(num_ranks: int, *arguments: str) -> str:
    """The command line on ranks, as a user starts it; what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    done = subprocess.run(
        [*command, "-m", "megatron_urpo.cli", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def transcripts(run_dir: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted((run_dir / "transcripts").glob("*.jsonl"))}


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")
