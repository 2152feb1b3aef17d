"""The folder of a run: what was asked, where it ran, what came out.

config.yaml          the resolved config, each value with where it came from
environment.json     commit, versions, hardware
metrics.jsonl        one object a step; step 0 is the model before training
transcripts/         step_000012.jsonl, one object a group
checkpoints/
batches/             step_000012.npz, what the step learned from (see batches.py)
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_urpo.reporting.batches import Batches
from megatron_urpo.reporting.jsonl import append_row, keep_rows, read_rows, replace_bytes

PACKAGES = (
    "megatron-urpo", "torch", "megatron-core", "transformer-engine", "transformers", "tokenizers", "safetensors",
    "numpy", "math-verify", "sympy", "pydantic", "pyarrow",
)  # fmt: skip


class RunFolder:
    """Makes the folder when it is missing. One process, rank 0, writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.transcripts = path / "transcripts"
        self.checkpoints = path / "checkpoints"
        self.batches = Batches(path)
        self.transcripts.mkdir(parents=True, exist_ok=True)

    def write_config(self, resolved: str) -> None:
        """`resolved` is the text that `load_config` returned."""
        replace_bytes(self.path / "config.yaml", resolved.encode())

    def write_environment(
        self, world_size: int, devices: Sequence[str] = (), code_isolation: str | None = None
    ) -> None:
        """What a reader needs to repeat the run; `devices` names the accelerators, none on a CPU.

        `code_isolation`: what programs of models run in, None where a run has none.
        """
        found = environment(world_size, devices) | {"code_isolation": code_isolation}
        text = json.dumps(found, indent=2) + "\n"
        replace_bytes(self.path / "environment.json", text.encode())

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line `{"step": step, name: value, ...}`, on disk when this returns."""
        append_row(self.metrics_file, {"step": step, **metrics})

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line so far, in order."""
        return read_rows(self.metrics_file)

    def transcript_file(self, step: int) -> Path:
        return self.transcripts / f"step_{step:06d}.jsonl"

    def truncate_after(self, step: int) -> None:
        """Forgets what a run that is resumed at `step` will write again.

        Drops metrics, transcripts and batches of later steps, and a last line that a crash cut off.
        """
        keep_rows(self.metrics_file, lambda row: bool(row["step"] <= step))
        for file in self.transcripts.glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()
        self.batches.forget_after(step)


def environment(world_size: int, devices: Sequence[str]) -> dict[str, Any]:
    """Commit (in an image the one it was built from; None outside both), versions, hardware."""
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("MEGATRON_URPO_COMMIT"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "devices": list(devices),
        "world_size": world_size,
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the package's checkout; None without git, a checkout or a commit."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
