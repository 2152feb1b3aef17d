"""Weights by broadcast from one process to another, each with a GPU of its own: NCCL takes one rank a GPU.

The receiver joins and receives by the steps of a server's rank; it answers with a checksum. Without a GPU over gloo.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_urpo.weight_sync.broadcast import BroadcastTransport, PrefixStore, TCPStore, distributed_c10d
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller

LOOPBACK = "127.0.0.1"
SECONDS = 120.0
TITLE = "Weights by broadcast"


def measure(tiny: bool) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < 2:
        note = "Needs two GPUs, since NCCL takes one rank a GPU; here is one. Nothing was measured."
        return {"title": TITLE, "notes": [note], "rows": [], "failures": []}
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    num_elements = 2**18 if tiny else 2**28
    bucket = Bucket(("weight",), ((num_elements,),), torch.bfloat16)
    caller, receiver = Caller(), Receiver(bucket.num_bytes)
    transport = BroadcastTransport(caller, LOOPBACK, device, SECONDS)
    seconds, failures = [], []
    try:
        buffer = transport.buffer(bucket.num_bytes, device)
        transport.open([receiver])
        for number in range(6):
            buffer.random_(0, 256, generator=torch.Generator(device).manual_seed(number))
            if on_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
            transport.send(bucket, buffer).wait()
            seconds.append(time.perf_counter() - start)
            if receiver.checksum != int(buffer.long().sum()):
                failures.append(f"broadcast {number}: other bytes arrived")
    finally:
        transport.close()
        receiver.close()
        caller.close()
    backend = "NCCL" if on_gpu else "gloo"
    row = {"backend": backend, "MiB": bucket.num_bytes / 2**20, "GB/s": bucket.num_bytes / 1e9 / median(seconds[1:])}
    notes = ["Checksums included in the time; median of five after one to warm up."]
    return {"title": TITLE, "notes": notes, "rows": [row], "failures": failures}


class Receiver:
    """Implements `protocols.UpdatableServer` as far as a broadcast needs it, over a process of its own."""

    name, tensor = "receiver", 1

    def __init__(self, num_bytes: int) -> None:
        self.checksum = -1
        command = [sys.executable, __file__, str(num_bytes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        self._order("join", group, address, port, rank, world_size, backend)

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        self.checksum = int(self._order("receive"))

    def leave_group(self, group: str) -> None:
        self._order("leave")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(SECONDS)

    def _order(self, *words: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


def serve(num_bytes: int) -> None:
    """The receiver's process: one order a line, answered by one line."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 1) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    for line in sys.stdin:
        order, *words = line.split()
        if order == "join":
            name, address, port, rank, world_size, backend = words
            deadline = timedelta(seconds=SECONDS)
            store = TCPStore(address, int(port), int(world_size), False, deadline)
            group, _ = distributed_c10d._new_process_group_helper(
                int(world_size),
                int(rank),
                [],
                dist.Backend(backend),
                PrefixStore(name, store),
                group_name=distributed_c10d.GroupName(name),
                timeout=deadline,
            )
            distributed_c10d._world.pg_group_ranks[group] = {index: index for index in range(int(world_size))}
        elif order == "receive":
            dist.broadcast(buffer, src=0, group=group)
        else:
            dist.destroy_process_group(group)
        print(int(buffer.long().sum()) if order == "receive" else "done", flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
