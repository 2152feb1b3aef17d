"""One receiver of weights over scripted servers: order of calls, the two buffers, all or nothing."""

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from megatron_urpo.protocols import EngineError, PushAgain, ServerGone, ServerRefused, UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.servers import ServerWeights
from tests.unit.weight_sync.scripted import ScriptedPool, ScriptedUpdates

SHAPES = {f"w{index}": (4,) for index in range(7)}
WEIGHTS = [(name, torch.full((4,), float(index))) for index, name in enumerate(SHAPES)]


class SlowTransport:
    """Reads a buffer as late as it may: when it is waited for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.arrived: list[tuple[str, list[float]]] = []

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        self.log.append("open")

    def send(self, bucket: Bucket, buffer: Tensor) -> "SlowSending":
        self.log.append(f"send {bucket.names[0]}")
        return SlowSending(self, bucket, buffer)

    def finish(self) -> None:
        self.log.append("finish")

    def close(self) -> None:
        self.log.append("close")


class SlowSending:
    def __init__(self, transport: SlowTransport, bucket: Bucket, buffer: Tensor) -> None:
        self._transport, self._bucket, self._buffer = transport, bucket, buffer

    def wait(self) -> None:
        """The last moment at which the buffer may be read."""
        self._transport.log.append(f"wait {self._bucket.names[0]}")
        for name, view in self._bucket.views(self._buffer):
            self._transport.arrived.append((name, view.tolist()))


def receiver(pool: ScriptedPool, transport: SlowTransport, bucket_bytes: int = 16) -> ServerWeights:
    return ServerWeights(
        pool,
        Caller(),
        transport,
        shapes=SHAPES,
        dtype=torch.float32,
        device=torch.device("cpu"),
        bucket_bytes=bucket_bytes,
    )


@pytest.mark.parametrize("bucket_bytes", [16, 32, 48, 1000])
def test_a_buffer_is_filled_anew_only_when_it_was_read(bucket_bytes: int) -> None:
    transport = SlowTransport()
    receiver(ScriptedPool(ScriptedUpdates("a")), transport, bucket_bytes).update_weights(iter(WEIGHTS), 3)
    assert transport.arrived == [(name, tensor.tolist()) for name, tensor in WEIGHTS]


def test_the_next_bucket_is_gathered_while_one_is_sent() -> None:
    transport = SlowTransport()

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in WEIGHTS:
            transport.log.append(f"gather {name}")
            yield name, tensor

    receiver(ScriptedPool(ScriptedUpdates("a")), transport).update_weights(weights(), 3)
    assert transport.log[:7] == ["open", "gather w0", "send w0", "gather w1", "wait w0", "send w1", "gather w2"]
    assert transport.log[-4:] == ["wait w5", "send w6", "wait w6", "finish"]


def test_every_server_goes_through_the_whole_update() -> None:
    pool = ScriptedPool(ScriptedUpdates("a"), ScriptedUpdates("b"))
    receiver(pool, SlowTransport()).update_weights(iter(WEIGHTS), 3)
    assert [server.calls for server in pool.servers] == [["begin_update", "end_update 3"]] * 2
    assert pool.given == [(["a", "b"], 3)]


@pytest.mark.parametrize("call", ["begin_update", "end_update 3"])
def test_a_server_that_is_gone_is_lost_and_the_others_wait_for_a_repeat(call: str) -> None:
    transport = SlowTransport()
    pool = ScriptedPool(ScriptedUpdates("a", {call: ServerGone("a: no answer")}), ScriptedUpdates("b"))
    weights = receiver(pool, transport)
    with pytest.raises(PushAgain, match="a: no answer"):
        weights.update_weights(iter(WEIGHTS), 3)
    assert (pool.lost_names, pool.given, transport.log[-1]) == (["a"], [], "close")
    weights.update_weights(iter(WEIGHTS), 3)
    assert pool.given == [(["b"], 3)]


def test_a_server_that_refuses_ends_the_run_by_name() -> None:
    pool = ScriptedPool(ScriptedUpdates("a"), ScriptedUpdates("b", {"begin_update": ServerRefused("no", 400)}))
    with pytest.raises(EngineError, match="version 3 were refused: b: no"):
        receiver(pool, SlowTransport()).update_weights(iter(WEIGHTS), 3)
    assert (pool.lost_names, pool.given) == (["b"], [])


def test_who_refuses_because_another_is_gone_is_not_lost() -> None:
    gone, refused = {"begin_update": ServerGone("a")}, {"begin_update": ServerRefused("b", 400)}
    pool = ScriptedPool(ScriptedUpdates("a", gone), ScriptedUpdates("b", refused))
    with pytest.raises(PushAgain):
        receiver(pool, SlowTransport()).update_weights(iter(WEIGHTS), 3)
    assert pool.lost_names == ["a"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [(WEIGHTS[:-1], "w6 did not come"), ([*WEIGHTS, ("x", torch.zeros(4))], "x is unknown")],
)
def test_no_server_serves_weights_that_are_not_the_models(weights: list[tuple[str, Tensor]], message: str) -> None:
    transport, pool = SlowTransport(), ScriptedPool(ScriptedUpdates("a"))
    with pytest.raises(ValueError, match=message):
        receiver(pool, transport).update_weights(iter(weights), 3)
    assert (pool.servers[0].calls, pool.given, transport.log[-1]) == (["begin_update"], [], "close")


def test_servers_are_called_at_the_same_time() -> None:
    """Each waits for the other: one after the other they would wait for ever."""
    both, places = threading.Barrier(2, timeout=20), []
    Caller().each([ScriptedUpdates("a"), ScriptedUpdates("b")], lambda server: places.append(both.wait()))
    assert sorted(places) == [0, 1]


def test_metrics() -> None:
    weights = receiver(ScriptedPool(ScriptedUpdates("a")), SlowTransport(), 32)
    weights.update_weights(iter(WEIGHTS), 3)
    found = weights.metrics()
    assert (found["weight_sync/bytes"], found["weight_sync/buckets"]) == (7 * 16, 4)
    assert found["time/weight_sync_gather"] > 0
