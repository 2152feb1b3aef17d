"""Starts a module of tests/distributed under torchrun and reads back what its ranks found."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

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
    log = folder / "ranks.log"  # not a pipe: a helper that outlives its rank would keep the reader waiting
    with log.open("w") as output:
        ranks = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = ranks.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_tree(ranks)
    how = f"was not done after {timeout:g} s" if code is None else f"ended with {code}"
    assert code == 0, f"{module} {arguments} {how}:\n{log.read_text()[-9000:]}"
    return json.loads((folder / "result.json").read_text())


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all below it: torchrun puts each rank into a session of its own, out of a signal's reach."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def write_result(folder: Path, result: Any) -> None:
    (folder / "result.json").write_text(json.dumps(result))
