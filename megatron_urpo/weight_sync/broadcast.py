"""Weights by broadcast: one process group of rank 0 and every rank of every server, apart from the trainer's own."""

import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d

from megatron_urpo.protocols import PushAgain, ServerGone, ServerRefused, UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller, Calls, ServersFailed

POLL_SECONDS = 0.001
SLOWEST_BYTES_PER_SECOND = 20e6
STALL_SECONDS = 30.0
"""After these, and the time that the largest bucket takes at the slowest speed, a broadcast has failed."""


class BroadcastTransport:
    """Implements `transport.Transport`: NCCL where the buffers lie on a GPU (never run), else gloo.

    The group is kept for the next update. Whoever is in it and dies breaks it for all; gloo does not always notice, so
    a broadcast is given up as soon as the server's own call fails.
    """

    def __init__(self, caller: Caller, address: str, device: torch.device, seconds: float) -> None:
        """`address` is where the servers reach this machine; no step takes longer than `seconds`."""
        self._caller, self._address, self._device, self._seconds = caller, address, device, seconds
        self._members: tuple[UpdatableServer, ...] = ()
        self._group: dist.ProcessGroup | None = None
        self._name = ""
        self._meeting: list[TCPStore] = []
        self._largest = 0
        self._proven = False

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        self._largest = max(self._largest, num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        self._proven = self._group is None or self._members != tuple(servers)
        if self._proven:
            self.close()
            self._join(tuple(servers))

    def send(self, bucket: Bucket, buffer: Tensor) -> "_Broadcast":
        group, name = self._group, self._name
        assert group is not None
        dtypes = [str(bucket.dtype).removeprefix("torch.")] * len(bucket.names)

        def receive(server: UpdatableServer, place: int) -> None:
            try:
                server.receive(name, bucket.names, dtypes, bucket.shapes)
            except ServerRefused:
                # Those to which it would have passed the bytes on wait until its connections are closed.
                with contextlib.suppress(ServerGone, ServerRefused):
                    server.leave_group(name)
                raise

        calls = self._caller.start(self._members, receive)
        work = dist.broadcast(buffer[: bucket.num_bytes], src=0, group=group, async_op=True)
        assert work is not None
        return _Broadcast(self, work, calls)

    def finish(self) -> None:
        """Every bucket was waited for."""

    def close(self) -> None:
        """Leaves the group; servers that are still there are told to forget it."""
        members, self._members = self._members, ()
        self.abandon()
        # One that is gone has left; one that refuses keeps a group that nobody will use again.
        with contextlib.suppress(ServersFailed):
            self._caller.each(members, lambda server: server.leave_group(self._name))

    def abandon(self) -> None:
        """Breaks the connections, so that nobody waits for a member that died."""
        if self._group is None:
            return
        self._group.abort()  # stops NCCL's kernels; gloo ignores it
        dist.destroy_process_group(self._group)
        self._meeting.clear()
        # The last reference goes in a thread: with it gloo waits for a broadcast that is under way, until its deadline.
        last, self._group = [self._group], None
        threading.Thread(target=last.clear, name="weight-sync-group").start()

    def failure(self, failed: ServersFailed) -> Exception:
        """What it means. A server that was started anew since the last update is no member of the group any more."""
        if self._proven or failed.gone:
            return failed
        return PushAgain(f"the process group of an earlier update is broken: {failed}")

    def arrived(self) -> None:
        """A broadcast has reached every member."""
        self._proven = True

    def _join(self, servers: tuple[UpdatableServer, ...]) -> None:
        name = f"megatron-urpo-{secrets.token_hex(8)}"  # a server that outlives runs may still know one of theirs
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        seconds = min(self._seconds, STALL_SECONDS + self._largest / SLOWEST_BYTES_PER_SECOND)
        world_size = 1 + sum(server.tensor for server in servers)
        first_ranks = list(itertools.accumulate((server.tensor for server in servers), initial=1))
        meeting = [listening_store(self._address, world_size, seconds)]
        port = meeting[0].port
        store = TCPStore(self._address, port, world_size, False, timedelta(seconds=seconds), wait_for_workers=False)

        def join(server: UpdatableServer, place: int) -> None:
            server.join_group(name, self._address, port, first_ranks[place], world_size, backend)

        joining = self._caller.start(servers, join)
        joining.on_failure(meeting.clear)  # without their meeting point the others stop waiting, this side included
        try:
            group = join_as_first(name, backend, store, world_size, seconds)
        except (RuntimeError, ValueError):
            meeting.clear()
            joining.wait()  # says which server did not come
            raise
        self._name, self._members, self._group, self._meeting = name, servers, group, meeting
        joining.wait()


class _Broadcast:
    def __init__(self, transport: BroadcastTransport, work: dist.Work, calls: Calls) -> None:
        self._transport, self._work, self._calls = transport, work, calls

    def wait(self) -> None:
        """Raises PushAgain where the group did not outlive the time since the last update."""
        try:
            self._wait()
        except ServersFailed as failed:
            raise self._transport.failure(failed) from None
        self._transport.arrived()

    def _wait(self) -> None:
        while not self._work.is_completed() and not self._calls.failed():
            time.sleep(POLL_SECONDS)
        try:
            if not self._calls.failed():
                self._work.wait()
        except RuntimeError:
            self._transport.abandon()
            self._calls.wait()  # says who died; where nobody did, the error is ours
            raise
        if self._calls.failed():
            self._transport.abandon()
        self._calls.wait()


def listening_store(address: str, world_size: int, seconds: float) -> TCPStore:
    """The meeting point of a new group, on a port of `address` that is free; it ends with the returned object."""
    listener = socket.create_server((address, 0))
    return TCPStore(
        address,
        listener.getsockname()[1],
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )


def join_as_first(name: str, backend: str, store: TCPStore, world_size: int, seconds: float) -> dist.ProcessGroup:
    """Rank 0 of a group whose other members are no ranks of this job; the servers make theirs by the same steps.

    torch (2.13) has no public way to a group beside the default one with processes outside it: `new_group` takes ranks
    of the default group alone. To be replaced when it has one.
    """
    group, _ = distributed_c10d._new_process_group_helper(
        world_size,
        0,
        [],
        dist.Backend(backend),
        PrefixStore(name, store),
        group_name=distributed_c10d.GroupName(name),
        timeout=timedelta(seconds=seconds),
    )
    assert isinstance(group, dist.ProcessGroup)
    distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group
