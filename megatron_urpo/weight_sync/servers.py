"""Servers as one receiver of weights: stop, send every bucket, forget what was cached, name the version, go on."""

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from megatron_urpo.protocols import EngineError, MemoryTag, PushAgain, ServerPool, UpdatableServer
from megatron_urpo.weight_sync.buckets import check_end, fill, plan_buckets
from megatron_urpo.weight_sync.calls import Caller, ServersFailed
from megatron_urpo.weight_sync.transport import Sending, Transport


class ServerWeights:
    """Implements `protocols.WeightReceiver` over the servers of a pool.

    Two buffers take turns: while one is sent the next bucket is gathered into the other.
    """

    def __init__(
        self,
        pool: ServerPool,
        caller: Caller,
        transport: Transport,
        *,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        device: torch.device,
        bucket_bytes: int,
    ) -> None:
        self._pool, self._caller, self._transport = pool, caller, transport
        self._buckets = plan_buckets(shapes, dtype, bucket_bytes)
        largest = max(bucket.num_bytes for bucket in self._buckets)
        self._buffers = [transport.buffer(largest, device) for _ in self._buckets[:2]]
        self.seconds = {"gather": 0.0, "wait": 0.0}
        """Of the last update: filling buffers, and waiting for one to be sent."""
        self._release_seconds: float | None = None
        """Of the last release and the resumes after it; None where nothing was released yet."""

    def metrics(self) -> dict[str, float]:
        """Of an update: bytes that each server gets, buckets, and what `seconds` has of the last."""
        released = {} if self._release_seconds is None else {"time/release": self._release_seconds}
        return {
            **released,
            "weight_sync/bytes": float(sum(bucket.num_bytes for bucket in self._buckets)),
            "weight_sync/buckets": float(len(self._buckets)),
            **{f"time/weight_sync_{part}": seconds for part, seconds in self.seconds.items()},
        }

    def release(self) -> None:
        """Every server gives its GPU memory to the trainer until the next update; one that fails to is lost."""
        start = time.perf_counter()
        servers = self._pool.set_aside()
        try:
            self._caller.each(servers, lambda server: server.release())
        except ServersFailed as failed:
            for server, error in (*failed.gone, *failed.refused):
                self._pool.lost(server, error)
        self._release_seconds = time.perf_counter() - start

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `protocols.WeightReceiver`.

        Raises PushAgain where a server died under way, or was started anew since the last update: no server serves
        then, and those that are left need the whole update once more. Raises EngineError, naming the server, where one
        refused or none is left; ValueError where `tensors` are not the model's. A server with half an update stays
        paused after any of them.
        """
        servers = self._pool.updatable()
        try:
            self._resume(servers, "weights")
            self._caller.each(servers, lambda server: server.begin_update())
            self._transport.open(servers)
            self._send(tensors)
            self._transport.finish()
            self._resume(servers, "kv_cache")
            self._caller.each(servers, lambda server: server.end_update(version))
        except ServersFailed as failed:
            self._transport.close()
            for server, error in failed.gone or failed.refused:
                self._pool.lost(server, error)
            if failed.gone:
                raise PushAgain(str(failed)) from None
            raise EngineError(f"weights of version {version} were refused: {failed}") from None
        except BaseException:
            self._transport.close()
            raise
        self._pool.updated(servers, version)

    def _resume(self, servers: Sequence[UpdatableServer], tag: MemoryTag) -> None:
        """The cache comes after the sending, whose buffers need room, and before `end_update`, which flushes it.

        A server that fails has no memory to serve from, whatever it answers, so it is as good as gone.
        """
        if self._release_seconds is None:
            return
        start = time.perf_counter()
        try:
            self._caller.each(servers, lambda server: server.resume(tag))
        except ServersFailed as failed:
            raise ServersFailed((*failed.gone, *failed.refused), ()) from None
        finally:
            self._release_seconds += time.perf_counter() - start

    def close(self) -> None:
        self._transport.close()
        self._buffers.clear()
        self._caller.close()

    def _send(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        stream = iter(tensors)
        sending: Sending | None = None
        self.seconds = {"gather": 0.0, "wait": 0.0}
        for index, bucket in enumerate(self._buckets):
            start = time.perf_counter()
            buffer = self._buffers[index % 2]
            fill(bucket, stream, buffer)
            filled = time.perf_counter()
            if sending is not None:
                sending.wait()
            sending = self._transport.send(bucket, buffer)
            self.seconds["gather"] += filled - start
            self.seconds["wait"] += time.perf_counter() - filled
        check_end(stream)
        if sending is not None:
            sending.wait()
