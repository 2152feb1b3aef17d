"""Starts a module of the tests on ranks and reads back what they found."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent


def run_ranks(module: str, num_ranks: int, folder: Path, *arguments: Any) -> Any:
    """Runs `main(folder, *arguments)` of tests.distributed.MODULE on `num_ranks` ranks; returns folder/result.json."""
    (found,) = run_worlds(module, [(num_ranks, folder, arguments)])
    return found


def run_worlds(
    module: str,
    worlds: Sequence[tuple[int, Path, Sequence[Any]]],
    package: str = "tests.distributed",
    timeout: float = 240,
) -> list[Any]:
    """As `run_ranks` for several (num_ranks, folder, arguments), one after the other; arguments are values of JSON.

    Imports cost several seconds: `fork` makes them once for all ranks of all worlds.
    """
    for _, folder, _ in worlds:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = json.dumps([(num_ranks, [str(folder), *arguments]) for num_ranks, folder, arguments in worlds])
    command = [sys.executable, "-m", "tests.distributed.fork", f"{package}.{module}", jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    log = worlds[0][1] / "ranks.log"  # not a pipe: a helper that outlives its rank would keep the reader waiting
    with log.open("w") as output:
        ranks = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = ranks.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_tree(ranks)
    how = f"was not done after {timeout:g} s" if code is None else f"ended with {code}"
    assert code == 0, f"{module} {jobs} {how}:\n{log.read_text()[-9000:]}"
    return [json.loads((folder / "result.json").read_text()) for _, folder, _ in worlds]


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all below it."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def write_result(folder: Path, result: Any) -> None:
    (folder / "result.json").write_text(json.dumps(result))
