"""A miniature that is ready in half a minute: its world with short lists, and a seed model that has barely begun.

It reads its tasks, so that every kind of reward occurs; it is far too weak to show that anything is learned.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MAX_CANDIDATES = 3
SFT_STEPS, SFT_ROWS = 120, 64


@dataclass(frozen=True)
class Miniature:
    """`seed`: Hugging Face folder; `train`: prompt store."""

    seed: Path
    train: Path

    def overrides(self, run_dir: Path, **values: Any) -> list[str]:
        """Arguments after the miniature's config.yaml for a run that takes a second a step."""
        given = {
            "run_dir": run_dir,
            "model.path": self.seed,
            "data.train": f"[{self.train}]",
            "data.prompts_per_step": 9,
            "data.curriculum": "[{mix: {preference: 1, reasoning: 1, instruction: 1}}]",
            "rollout.completions_per_prompt": 3,
            "evaluation.data": "[]",
            "checkpoint.every": 0,
            **values,
        }
        return [f"{name}={value}" for name, value in given.items()]


def make_miniature(folder: Path) -> Miniature:
    """Builds the world and trains the seed by the project's own commands."""
    world = folder / "world"
    _run(sys.executable, "examples/miniature/build.py", str(world))
    rows = [json.loads(line) for line in (world / "sft.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not _is_scoring(row) or 2 <= _num_candidates(row) <= MAX_CANDIDATES]
    random.Random(0).shuffle(rows)
    _write(folder / "sft.jsonl", rows[: SFT_STEPS * SFT_ROWS])
    prompts = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    _write(folder / "train.jsonl", [row for row in prompts if len(row.get("responses", ())) <= MAX_CANDIDATES])
    megatron_urpo(
        "sft", "examples/miniature/seed.yaml", f"output={folder / 'seed'}", f"model.path={world / 'model'}",
        f"data.train={folder / 'sft.jsonl'}", f"num_steps={SFT_STEPS}", f"data.rows_per_step={SFT_ROWS}",
    )  # fmt: skip
    return Miniature(folder / "seed", folder / "train.jsonl")


def megatron_urpo(*arguments: str) -> None:
    """The command line in a process of its own, as a user runs it; one thread, so that results repeat."""
    _run(sys.executable, "-m", "megatron_urpo.cli", *arguments)


def _run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _is_scoring(row: dict[str, Any]) -> bool:
    return "prompt_weight" in row


def _num_candidates(row: dict[str, Any]) -> int:
    return int(row["messages"][0]["content"].count("\n"))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
