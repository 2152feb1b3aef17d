"""Starts a module of tests/distributed under torchrun and reads back what its ranks found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def run_ranks(module: str, num_ranks: int, folder: Path, *arguments: str, timeout: float = 240) -> Any:
    """Runs `python -m tests.distributed.MODULE FOLDER ARGUMENTS` on `num_ranks` ranks; returns FOLDER/result.json.

    A start costs several seconds, most of them imports: a module does all of a layout's checks in one go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks),
        "-m", f"tests.distributed.{module}", str(folder), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{module} {arguments} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return json.loads((folder / "result.json").read_text())


def write_result(folder: Path, result: Any) -> None:
    (folder / "result.json").write_text(json.dumps(result))
