"""Pairs of ranks of which one dies in each way that there is; imports are made once, then every rank is a fork.

Writes for each case and rank the exit status, what it said and the seconds from the event to its end. No torchrun:
its agent would end the other ranks by itself.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from megatron_urpo.config import ConfigError
from megatron_urpo.config.launch import LaunchConfig
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.inference.ports import free_ports
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.user_errors import user_errors
from tests.distributed.launch import write_result

ABORT_AFTER = 6.0
LONG_COLLECT = 1.5 * ABORT_AFTER
DEATHS = ("raise", "user_error", "kill", "stop")
CASES = [(death, rank) for death in DEATHS for rank in (0, 1)] + [("long_collect", 0)]


def main(folder: Path) -> None:
    ports = free_ports(len(CASES))
    children = {}
    for (case, victim), port in zip(CASES, ports, strict=True):
        for rank in (0, 1):
            pid = os.fork()
            if pid == 0:
                run_rank(folder, case, victim, rank, port)
            children[pid] = (case, victim, rank)
    write_result(folder, collect(folder, children))


def collect(folder: Path, children: dict[int, tuple[str, int, int]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    left = dict(children)
    stopped = {pid: key for pid, key in children.items() if key[0] == "stop" and key[1] == key[2]}
    while set(left) - set(stopped):
        pid, status = os.wait()
        found[name(*left.pop(pid))] = ended(folder, name(*children[pid]), status)
    for pid in stopped:  # they could not end: that is what the others were to notice
        os.kill(pid, signal.SIGKILL)
        found[name(*children[pid])] = ended(folder, name(*children[pid]), os.waitpid(pid, 0)[1])
    return found


def name(case: str, victim: int, rank: int) -> str:
    return f"{case} of {victim}: rank {rank}"


def ended(folder: Path, key: str, status: int) -> dict[str, Any]:
    at = time.time()
    event = folder / f"{key.split(':')[0]}.event"
    return {
        "status": os.waitstatus_to_exitcode(status),
        "said": (folder / key).read_text(),
        "seconds": at - float(event.read_text()) if event.exists() else None,
    }


def run_rank(folder: Path, case: str, victim: int, rank: int, port: int) -> NoReturn:
    with (folder / name(case, victim, rank)).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        with user_errors(), joined_ranks(ParallelConfig(), launch=LaunchConfig(abort_after=ABORT_AFTER)) as parallel:
            parallel.barrier()
            live(parallel, case, rank == victim, folder / f"{case} of {victim}.event")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stderr.flush()
    os._exit(code)


def live(parallel: Parallel, case: str, is_victim: bool, event: Path) -> None:
    if case == "long_collect":
        assert parallel.from_rank0(lambda: time.sleep(LONG_COLLECT) or "done") == "done"  # type: ignore[func-returns-value]
        return
    if not is_victim:
        parallel.barrier()
        return
    event.write_text(str(time.time()))
    if case == "raise":
        raise ArithmeticError("boom\nof two lines")
    if case == "user_error":
        raise ConfigError("field: value; rule")
    os.kill(os.getpid(), signal.SIGKILL if case == "kill" else signal.SIGSTOP)
    time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
