"""A server's process: what it leaves behind, however it and its parent end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_urpo.inference.process import SHARED_MEMORY, ServerProcess

# A launcher with a child of its own, both of which map a file of shared memory, as servers' workers do.
SERVER = """
import mmap, os, sys, time
path = "/dev/shm/" + sys.argv[1]
with open(path, "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
parent, child = os.getpid(), os.fork()
if child:
    print("serving with", child, "in", os.environ["TMPDIR"], flush=True)
    time.sleep(600)
while os.getppid() == parent:  # the others follow the first by themselves
    time.sleep(0.05)
"""
# A run that starts a server with a child that does not follow it, says their pids and then waits to be killed.
PARENT = """
import sys, time
from pathlib import Path
from megatron_urpo.inference.process import ServerProcess
program = "import os, time; print(os.fork(), flush=True); time.sleep(600)"
server = ServerProcess([sys.executable, "-c", program], {}, Path(sys.argv[1]))
while len(server.last_lines().split()) < 2:
    time.sleep(0.01)
print(server.pid, max(server.last_lines().split(), key=int), flush=True)
time.sleep(600)
"""


def start(tmp_path: Path) -> tuple[ServerProcess, list[psutil.Process], Path, Path]:
    """The process, it and its child, their shared memory, their scratch folder."""
    name = f"test-{os.getpid()}-{tmp_path.name}"
    server = ServerProcess([sys.executable, "-c", SERVER, name], {}, tmp_path / "logs" / "server.log")
    wait_for(lambda: "serving" in server.last_lines())
    words = server.last_lines().split()
    return server, [psutil.Process(server.pid), psutil.Process(int(words[2]))], SHARED_MEMORY / name, Path(words[4])


def runs(process: psutil.Process) -> bool:
    """A process that has ended may still be listed, until somebody asks for its status."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("killed_first", [False, True])
def test_nothing_is_left_behind(tmp_path: Path, killed_first: bool) -> None:
    server, processes, shared, scratch = start(tmp_path)
    assert (server.status, shared.exists(), scratch.is_dir()) == (None, True, True)
    server.remember_shared_memory()
    if killed_first:
        for process in processes:
            process.kill()
        wait_for(lambda: server.status is not None)
        assert server.status == -signal.SIGKILL
        assert shared.exists()
    server.stop()
    assert [process for process in processes if runs(process)] == []
    assert (shared.exists(), scratch.exists()) == (False, False)
    server.stop()  # a second time is nothing


def test_a_server_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert [runs(process) for process in processes] == [True, True]
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(runs, processes)))


def test_a_server_knows_nothing_of_the_ranks_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "here",
        "TORCHELASTIC_USE_AGENT_STORE": "1",
    }
    for name, value in {**told, "RANKLE": "kept"}.items():
        monkeypatch.setenv(name, value)
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    server = ServerProcess([sys.executable, "-c", program], {"MINE": "1"}, tmp_path / "log")
    wait_for(lambda: server.status is not None)
    seen = json.loads(server.last_lines())
    server.stop()
    assert told.keys() & seen.keys() == set()
    assert (seen["MINE"], seen["RANKLE"]) == ("1", "kept")


def test_a_program_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        ServerProcess(["no-such-program"], {}, tmp_path / "log")
