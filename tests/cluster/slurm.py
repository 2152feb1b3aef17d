"""What the tests ask of the local SLURM, and what jobs leave behind."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.miniature import ROOT, Miniature

LOCAL = ROOT / "scripts" / "slurm_local.sh"
SCRIPTS = ROOT / "scripts" / "slurm"
CONFIG = ROOT / "examples" / "miniature" / "config.yaml"
ON_CPUS = {
    "launch.gpus_per_node": 0,
    "launch.ranks_per_node": 2,
    "launch.cpus_per_rank": 1,
    "launch.abort_after": 20,
    "parallel.tensor": 2,
    "checkpoint.every": 1,
}


@dataclass(frozen=True)
class Slurm:
    """`folder` holds its configuration and logs."""

    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=120)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def ask(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def submit(self, changes: Sequence[str], nodes: int, *options: str) -> str:
        """Queues the miniature as a user does; its number."""
        return self.ask(
            sys.executable, "-m", "megatron_urpo.cli", "sbatch", str(CONFIG), *changes,
            "--nodes", str(nodes), "--partition", "all", "--submit", *options,
        )  # fmt: skip

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def wait(self, number: str, seconds: float = 600) -> dict[str, str]:
        """Until the job has ended for good."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(number)
            if job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return job
            assert time.monotonic() < deadline, f"{job}\n{(self.folder / 'log' / 'slurmctld.log').read_text()[-3000:]}"
            time.sleep(0.3)


def changes(miniature: Miniature, run_dir: Path, **values: Any) -> list[str]:
    return miniature.overrides(run_dir, **{**ON_CPUS, **values})


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what} after {seconds:g} s"
        time.sleep(0.05)


def log_of(run_dir: Path, number: str) -> str:
    path = run_dir / "jobs" / f"{number}.log"
    return path.read_text() if path.exists() else ""


def num_steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Without what a clock writes."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]
