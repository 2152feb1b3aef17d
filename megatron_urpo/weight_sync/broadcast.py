"""Weights by broadcast: process groups of rank 0 and the ranks of servers, apart from the trainer's own."""

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

from megatron_urpo.protocols import PushAgain, UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller, Calls, ServersFailed, collect

POLL_SECONDS = 0.001
GRACE_SECONDS = 3.0
"""In which a server comes to the meeting point of a new group, where all were asked at the same time."""
SLOWEST_BYTES_PER_SECOND = 20e6
STALL_SECONDS = 30.0
"""After these, and the time that the largest bucket takes at the slowest speed, a broadcast has failed."""


class BroadcastTransport:
    """Implements `transport.Transport`: NCCL where the buffers lie on a GPU (never run), else gloo.

    NCCL has one group of everybody, whose members pass the bytes on. With gloo each server has a group of its own: a
    process that receives from one that dies is not woken before its deadline, half an hour in SGLang, so no server's
    bytes may depend on another server. Groups are kept for the next update.
    """

    def __init__(self, caller: Caller, address: str, device: torch.device, seconds: float) -> None:
        """`address` is where the servers reach this machine; no step takes longer than `seconds`."""
        self._caller, self._address, self._seconds = caller, address, seconds
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        self._members: tuple[UpdatableServer, ...] = ()
        self._groups: list[_Group] = []
        self._largest = 0
        self._proven = False

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        self._largest = max(self._largest, num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        self._proven = self._members != tuple(servers)
        if self._proven:
            self.close()
            seconds = min(self._seconds, STALL_SECONDS + self._largest / SLOWEST_BYTES_PER_SECOND)
            divided = [tuple(servers)] if self._backend == "nccl" else [(server,) for server in servers]
            self._groups = [_Group(self._caller, some, self._address, self._backend, seconds) for some in divided]
            collect(group.join for group in self._groups)
            self._members = tuple(servers)

    def send(self, bucket: Bucket, buffer: Tensor) -> "_Broadcasts":
        return _Broadcasts(self, [group.send(bucket, buffer) for group in self._groups])

    def finish(self) -> None:
        """Every bucket was waited for."""

    def close(self) -> None:
        """Leaves the groups; servers that are still there are told to forget them."""
        groups, self._groups, self._members = self._groups, [], ()
        for group in groups:
            group.abandon()
        # One that is gone has left; one that refuses keeps a group that nobody will use again.
        with contextlib.suppress(ServersFailed):
            collect([self._caller.start(group.members, group.leave).wait for group in groups])

    def failure(self, failed: ServersFailed) -> Exception:
        """What it means. A server that was started anew since the last update is no member of its group any more."""
        if self._proven or failed.gone:
            return failed
        return PushAgain(f"the process group of an earlier update is broken: {failed}")

    def arrived(self) -> None:
        """A broadcast has reached every member."""
        self._proven = True


class _Broadcasts:
    def __init__(self, transport: BroadcastTransport, parts: "list[_Broadcast]") -> None:
        self._transport, self._parts = transport, parts

    def wait(self) -> None:
        """Raises PushAgain where a group did not outlive the time since the last update."""
        try:
            collect(part.wait for part in self._parts)
        except ServersFailed as failed:
            raise self._transport.failure(failed) from None
        self._transport.arrived()


class _Group:
    """Rank 0 and every rank of `members`, who are asked at once to join; `join` makes it complete."""

    def __init__(
        self, caller: Caller, members: tuple[UpdatableServer, ...], address: str, backend: str, seconds: float
    ) -> None:
        self.members = members
        self._name = f"megatron-urpo-{secrets.token_hex(8)}"  # a server that outlives runs may still know theirs
        self._caller, self._backend, self._seconds = caller, backend, seconds
        self._world_size = 1 + sum(server.tensor for server in members)
        self._group: dist.ProcessGroup | None = None
        self._meeting = [listening_store(address, self._world_size, seconds)]
        port = self._meeting[0].port
        deadline = timedelta(seconds=seconds)
        self._store = TCPStore(address, port, self._world_size, False, deadline, wait_for_workers=False)
        first_ranks = list(itertools.accumulate((server.tensor for server in members), initial=1))

        def enter(server: UpdatableServer, place: int) -> None:
            server.join_group(self._name, address, port, first_ranks[place], self._world_size, backend)

        self._joining = caller.start(members, enter)
        # Without their meeting point the others stop waiting, this side included; whoever comes later finds no port to
        # connect to, and tries for half an hour.
        self._joining.on_failure(lambda: threading.Timer(GRACE_SECONDS, self._meeting.clear).start())

    def join(self) -> None:
        """Raises ServersFailed where a member does not come."""
        try:
            self._group = join_as_first(self._name, self._backend, self._store, self._world_size, self._seconds)
        except (RuntimeError, ValueError):
            self._meeting.clear()
            self._joining.wait()  # says which server did not come
            raise
        self._joining.wait()

    def send(self, bucket: Bucket, buffer: Tensor) -> "_Broadcast":
        assert self._group is not None
        dtypes = [str(bucket.dtype).removeprefix("torch.")] * len(bucket.names)

        def receive(server: UpdatableServer, place: int) -> None:
            server.receive(self._name, bucket.names, dtypes, bucket.shapes)

        calls = self._caller.start(self.members, receive)
        work = dist.broadcast(buffer[: bucket.num_bytes], src=0, group=self._group, async_op=True)
        assert work is not None
        return _Broadcast(self, work, calls)

    def leave(self, server: UpdatableServer, place: int) -> None:
        server.leave_group(self._name)

    def abandon(self) -> None:
        """Breaks the connections, so that nobody waits for this side."""
        if self._group is None:
            return
        self._group.abort()  # stops NCCL's kernels; gloo ignores it
        dist.destroy_process_group(self._group)
        self._meeting.clear()
        # The last reference goes in a thread: with it gloo waits for a broadcast that is under way, until its deadline.
        last, self._group = [self._group], None
        threading.Thread(target=last.clear, name="weight-sync-group").start()


class _Broadcast:
    def __init__(self, group: _Group, work: dist.Work, calls: Calls) -> None:
        self._group, self._calls = group, calls
        self._work: dist.Work | None = work

    def wait(self) -> None:
        broken = self._until_over()
        if broken is not None or self._calls.failed():
            self._work = None  # it keeps the connections open
            self._group.abandon()
        self._calls.wait()
        if broken is not None:  # and nobody died: the error is ours
            raise broken

    def _until_over(self) -> RuntimeError | None:
        """Until everybody has the bytes or somebody failed; the error of this side's part in it.

        The calls are watched, since gloo does not always notice that a receiver has died.
        """
        assert self._work is not None
        try:
            while not self._calls.over():
                if self._work.is_completed():
                    self._work.wait()  # raises where it failed
                time.sleep(POLL_SECONDS)
            if not self._calls.failed():
                self._work.wait()
        except RuntimeError as error:
            return error
        return None


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
