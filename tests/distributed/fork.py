"""Ranks as forks of one process that has made all imports: `python -m tests.distributed.fork MODULE WORLDS`.

WORLDS is JSON: number of ranks and arguments of `MODULE.main` of each world; they run one after the other. What is
started by torchrun is in tests/loop/test_layouts.py, tests/loop/test_replay.py and tests/servers.
"""

import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_urpo.inference.ports import free_ports

Work = Callable[..., object]


def main(module: str, worlds: Sequence[tuple[int, Sequence[Any]]]) -> None:
    work: Work = importlib.import_module(module).main
    for num_ranks, arguments in worlds:
        run_world(work, num_ranks, arguments)


def run_world(work: Work, num_ranks: int, arguments: Sequence[Any]) -> None:
    """Ends with a message, and all of its ranks with it, as soon as one fails."""
    (port,) = free_ports(1)
    ranks = {fork_rank(work, rank, num_ranks, port, arguments): rank for rank in range(num_ranks)}
    while ranks:
        pid, status = os.wait()
        rank = ranks.pop(pid)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"rank {rank} of {num_ranks} with {arguments} ended with {code}")


def fork_rank(work: Work, rank: int, num_ranks: int, port: int, arguments: Sequence[Any]) -> int:
    """Its pid."""
    pid = os.fork()
    if pid == 0:
        place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        run_rank(work, arguments)
    return pid


def run_rank(work: Work, arguments: Sequence[Any]) -> NoReturn:
    """Ends at once: gloo's groups of former layouts have been seen to wait for each other at an orderly end.

    megatron-core's writer keeps a helper process that only such an end stops. Left alone it would go on with this
    rank's output open.
    """
    code = 1
    try:
        work(Path(arguments[0]), *arguments[1:])
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for helper in multiprocessing.active_children():
        helper.terminate()
        helper.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
