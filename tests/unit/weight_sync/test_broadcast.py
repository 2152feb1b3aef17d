"""The process group of rank 0 and servers, over gloo with real processes: it is kept, and nobody waits for a fault."""

import contextlib
import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from megatron_urpo.protocols import PushAgain, ServerGone, ServerRefused
from megatron_urpo.weight_sync.broadcast import BroadcastTransport
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller, ServersFailed
from tests.unit.weight_sync import peer
from tests.unit.weight_sync.scripted import ScriptedUpdates

SECONDS = 120.0
PROMPT = 30.0  # a quarter of the deadline; what is meant takes less than one
BUCKET = Bucket(("a", "b"), ((3, 5), (7,)), torch.float32)
BUFFER = torch.arange(BUCKET.num_bytes, dtype=torch.uint8)


class Peer(ScriptedUpdates):
    """A server whose part in groups is played by a process."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        command = [sys.executable, peer.__file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.digests: list[str] = []
        self.fails: dict[str, Exception] = {}

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        where = {"group": group, "address": address, "port": port, "rank": rank}
        self._order("join", {**where, "world_size": world_size, "backend": backend})

    def leave_group(self, group: str) -> None:
        self._order("leave", {"group": group})

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        size = sum(math.prod(s) * getattr(torch, d).itemsize for s, d in zip(shapes, dtypes, strict=True))
        self.digests.append(self._order("receive", {"group": group, "num_bytes": size}))

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _order(self, order: str, arguments: dict[str, object]) -> str:
        self.calls.append(order)
        if order in self.fails:
            raise self.fails.pop(order)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([order, arguments]) + "\n")
            self.process.stdin.flush()
        word, _, text = self.answer().partition(" ")
        if not word:
            raise ServerGone(f"{self.name}: died")
        if word == "error":
            raise ServerRefused(text, 400)
        return text


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Peer]]:
    found = [Peer("a"), Peer("b")]
    assert [one.answer() for one in found] == ["ready", "ready"]
    yield found
    for one in found:
        assert one.process.stdin is not None
        one.process.stdin.close()
        one.process.wait(SECONDS)


@pytest.fixture
def peers(processes: list[Peer]) -> list[Peer]:
    for one in processes:
        one.calls, one.digests, one.fails = [], [], {}
    return processes


@pytest.fixture
def transport() -> Iterator[BroadcastTransport]:
    caller = Caller()
    made = BroadcastTransport(caller, "127.0.0.1", torch.device("cpu"), SECONDS)
    yield made
    made.close()
    caller.close()


def test_bytes_arrive_and_the_group_is_kept(peers: list[Peer], transport: BroadcastTransport) -> None:
    for _ in range(2):
        transport.open(peers)
        for _ in range(2):
            transport.send(BUCKET, BUFFER).wait()
        transport.finish()
    digest = hashlib.sha256(bytes(range(BUCKET.num_bytes))).hexdigest()
    for one in peers:
        assert one.digests == [digest] * 4
        assert one.calls == ["join", *["receive"] * 4]


def test_other_members_make_another_group(peers: list[Peer], transport: BroadcastTransport) -> None:
    transport.open(peers)
    transport.open(peers[:1])
    transport.send(BUCKET, BUFFER).wait()
    assert [one.calls for one in peers] == [["join", "leave", "join", "receive"], ["join", "leave"]]


@pytest.mark.parametrize("error", [ServerGone("a: died"), ServerRefused("a: busy", 400)])
def test_nobody_waits_for_one_that_does_not_join(
    peers: list[Peer], transport: BroadcastTransport, error: Exception
) -> None:
    peers[0].fails["join"] = error
    start = time.monotonic()
    with pytest.raises(ServersFailed, match=str(error)):
        transport.open(peers)
    assert time.monotonic() - start < PROMPT
    transport.open(peers)
    transport.send(BUCKET, BUFFER).wait()


@pytest.mark.parametrize("error", [ServerGone("a: died"), ServerRefused("a: busy", 400)])
def test_nobody_waits_for_one_that_does_not_receive(
    peers: list[Peer], transport: BroadcastTransport, error: Exception
) -> None:
    transport.open(peers)
    peers[0].fails["receive"] = error
    start = time.monotonic()
    with pytest.raises(ServersFailed, match=str(error)) as raised:
        transport.send(BUCKET, BUFFER).wait()
    assert time.monotonic() - start < PROMPT
    assert bool(raised.value.gone) == isinstance(error, ServerGone)
    transport.close()
    transport.open(peers)
    transport.send(BUCKET, BUFFER).wait()


def test_one_that_is_killed_in_a_broadcast_takes_nobody_with_it(
    peers: list[Peer], transport: BroadcastTransport
) -> None:
    victim = Peer("c")
    assert victim.answer() == "ready"
    bucket = Bucket(("a",), ((2**26,),), torch.float32)  # bytes enough for many times the delay of the kill
    buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
    transport.open([victim, *peers])
    start = time.monotonic()
    threading.Timer(0.02, victim.process.kill).start()
    with pytest.raises(ServersFailed, match="c: died") as raised:
        transport.send(bucket, buffer).wait()
    assert time.monotonic() - start < PROMPT
    assert raised.value.refused == []
    assert [len(one.digests) for one in peers] == [1, 1]


def test_a_group_that_broke_between_two_updates_asks_for_a_repeat(
    peers: list[Peer], transport: BroadcastTransport
) -> None:
    transport.open(peers)
    transport.send(BUCKET, BUFFER).wait()
    peers[0].fails["receive"] = ServerRefused("no such group", 400)
    transport.open(peers)
    with pytest.raises(PushAgain, match="no such group"):
        transport.send(BUCKET, BUFFER).wait()
