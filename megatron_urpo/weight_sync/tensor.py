"""Weights through memory that this process and servers of the same machine share.

On a CPU the buffers lie in shared memory, and what goes over HTTP is where. On a GPU they are opened by CUDA IPC; that
way has never been run.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing
from torch import Tensor

from megatron_urpo.protocols import UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller, Calls


class TensorTransport:
    """Implements `transport.Transport`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._servers: tuple[UpdatableServer, ...] = ()

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        if device.type == "cpu":
            with _sharing_by_name(), _quiet_daemon():
                buffer.share_memory_()  # type: ignore[no-untyped-call]
        return buffer

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        self._servers = tuple(servers)

    def send(self, bucket: Bucket, buffer: Tensor) -> Calls:
        # One for each receiver: shared memory counts its users, and each that opens a pickle takes one off.
        with _sharing_by_name():
            pickled = [[self._pickle(bucket, buffer) for _ in range(server.tensor)] for server in self._servers]
        return self._caller.start(self._servers, lambda server, place: server.load_tensors(pickled[place]))

    def finish(self) -> None:
        """Every bucket was waited for."""

    def close(self) -> None:
        self._servers = ()

    def _pickle(self, bucket: Bucket, buffer: Tensor) -> bytes:
        return bytes(ForkingPickler.dumps(list(bucket.views(buffer))))


@contextlib.contextmanager
def _sharing_by_name() -> Iterator[None]:
    """Memory is shared by a name in the file system, not by an open file: a server that is handed a file of a process
    that is not its parent ends."""
    before = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _quiet_daemon() -> Iterator[None]:
    """The first shared memory starts torch's daemon, which removes it when all who use it have ended.

    It inherits standard output and error and would keep a pipe to whoever reads this process's output open.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
