"""Memory that is shared by name: what another process reads there, and that it is gone when both are.

The server's part is played by a process that opens what it is sent as SGLang does.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SECONDS = 60.0  # torch's daemon looks after the memory, and ends two seconds after the last who used it
SENDER = """
import sys, time, torch
from megatron_urpo.weight_sync.buckets import fill, plan_buckets
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.tensor import TensorTransport
from tests.unit.weight_sync.scripted import ScriptedUpdates

class Server(ScriptedUpdates):
    tensor = 2

    def load_tensors(self, pickled):
        print(self.name, *(part.hex() for part in pickled), flush=True)
        input()

transport = TensorTransport(Caller())
(bucket,) = plan_buckets({"a": (2, 3), "b": (4,)}, torch.float32, 1000)
buffer = transport.buffer(bucket.num_bytes, torch.device("cpu"))
servers = [Server("one"), Server("two")]
for server in servers:
    transport.open([server])
    for value in (1.5, 2.5):
        fill(bucket, iter([("a", torch.full((2, 3), value)), ("b", torch.full((4,), -value))]), buffer)
        transport.send(bucket, buffer).wait()
transport.close()
print("sent", flush=True)
input()
"""
RECEIVER = """
import pickle, sys, torch
for line in sys.stdin:
    named = pickle.loads(bytes.fromhex(line))
    print([(name, tensor.flatten().tolist()) for name, tensor in named], flush=True)
    del named
"""


class Program:
    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_every_rank_reads_the_same_and_nothing_is_left(how: str) -> None:
    """`rest` of standard output ends with the sender, too: the daemon does not hold it open."""
    sender, ranks = Program(SENDER), [Program(RECEIVER) for _ in range(2)]
    for server in ("one", "two"):
        for value in (1.5, 2.5):
            name, *parts = sender.hear().split()
            assert name == server
            for rank, part in zip(ranks, parts, strict=True):
                rank.say(part)
                assert rank.hear() == str([("a", [value] * 6), ("b", [-value] * 4)])
            sender.say()
    assert sender.hear() == "sent"
    pid = sender.process.pid
    daemons = [child for child in psutil.Process(pid).children() if child.name().startswith("torch_shm")]
    assert len(shared_by(pid)) == len(daemons) == 1
    if how == "is killed":
        sender.process.send_signal(signal.SIGKILL)
    else:
        sender.say()
    rest, _ = sender.process.communicate(timeout=SECONDS)
    assert rest == ""
    assert sender.process.returncode == (-signal.SIGKILL if how == "is killed" else 0)
    for rank in ranks:
        rank.process.communicate(timeout=SECONDS)
    assert wait_for_end(daemons) == []
    assert shared_by(pid) == []


def shared_by(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"torch_{pid}_*"))


def wait_for_end(daemons: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there after `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while (left := [daemon for daemon in daemons if daemon.is_running()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
