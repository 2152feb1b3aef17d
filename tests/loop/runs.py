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
from tests.support.miniature import ROOT, Miniature

CONFIG = ROOT / "examples" / "miniature" / "config.yaml"


def train(miniature: Miniature, run_dir: Path, **values: Any) -> Path:
    """One run in this process, on one thread so that its numbers repeat."""
    train_all([miniature.overrides(run_dir, **values)])
    return run_dir


def train_all(runs: Sequence[Sequence[str]]) -> None:
    """Several runs one after the other, each with its overrides; one process saves the seconds that imports take."""
    torch.set_num_threads(1)
    for index, overrides in enumerate(runs):
        if index and "RANK" in os.environ:
            # torchrun's store still holds the addresses of the run before: later runs meet at a store of their own.
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        assert train_here(*load_config(CONFIG, overrides)) == 0


def train_on_ranks(num_ranks: int, runs: Sequence[Sequence[str]]) -> None:
    """As `train_all`, under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    done = subprocess.run(
        [*command, "-m", "tests.loop.runs", json.dumps(runs)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


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


if __name__ == "__main__":
    train_all(json.loads(sys.argv[1]))
