"""Weights pushed into real servers: the tokens that they then sample have the probabilities of the pushed model.

The servers hold the same model on one rank and on two, and one with tied embeddings. The last test kills one of them.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.weight_sync.broadcast import BroadcastTransport
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.push import push_weights
from tests.servers.process import wait_until_ready
from tests.servers.updating import (
    BALLAST,
    BALLAST_BYTES,
    CPU,
    TRANSPORTS,
    Fleet,
    OneRank,
    Pool,
    Source,
    assert_nothing_is_left,
    assert_serves,
    listening_ports,
    load,
    make_transport,
    new_model,
    receiving,
    shared_by_us,
    start,
)


@pytest.fixture(scope="module")
def fleet(sglang_python: Path, tmp_path_factory: pytest.TempPathFactory, _finish_on_sigterm: None) -> Iterator[Fleet]:
    """Three servers, started at the same time. When they have stopped, nothing of an update is left."""
    with contextlib.ExitStack() as stack:
        background = BackgroundLoop("updates")
        stack.callback(background.close)
        started = {}
        for name in ("one", "two", "tied"):
            started[name] = start(sglang_python, tmp_path_factory.mktemp(name), tied=name == "tied", two=name == "two")
            stack.callback(started[name].process.stop)
        for server in started.values():
            wait_until_ready(server)
            server.process.remember_shared_memory()
        with contextlib.closing(Fleet(started["one"], started["two"], started["tied"], background)) as fleet:
            yield fleet
    assert shared_by_us() == []


def test_two_servers_take_the_weights(fleet: Fleet, tmp_path: Path, transport: str) -> None:
    version, before = 1 + TRANSPORTS.index(transport), set(listening_ports())
    folder, shapes = new_model(tmp_path, seed=version)
    pool = Pool(fleet.updates(fleet.one), fleet.updates(fleet.two))
    with receiving(pool, shapes, make_transport(transport, tmp_path, folder)) as receiver:
        metrics = push_weights(Source(folder, shapes), receiver, version, OneRank())
    assert pool.given == [([fleet.one.url, fleet.two.url], version)]
    assert metrics["weight_sync/buckets"] >= 4
    assert metrics["weight_sync/bytes"] == 4 * sum(p.numel() for p in load(folder).parameters())
    assert metrics["weight_sync/retries"] == 0
    for server in (fleet.one, fleet.two):
        assert_serves(server, folder, version)
    assert_nothing_is_left(before)
    assert not (tmp_path / "transit").exists()


def test_tied_embeddings_are_sent_once(fleet: Fleet, tmp_path: Path, transport: str) -> None:
    version = 11 + TRANSPORTS.index(transport)
    folder, shapes = new_model(tmp_path, seed=version, tied=True)
    assert "lm_head.weight" not in shapes
    with receiving(Pool(fleet.updates(fleet.tied)), shapes, make_transport(transport, tmp_path, folder)) as receiver:
        push_weights(Source(folder, shapes), receiver, version, OneRank())
    assert_serves(fleet.tied, folder, version)


def test_a_group_is_kept_and_made_anew_when_a_server_has_left_it(fleet: Fleet, tmp_path: Path) -> None:
    """As a server has that was started again since the last update."""
    one, two = fleet.updates(fleet.one), fleet.updates(fleet.two)
    transport = make_transport("broadcast", tmp_path, tmp_path)
    models = [new_model(tmp_path / str(seed), seed=seed) for seed in (21, 22, 23)]
    retries = []
    with receiving(Pool(one, two), models[0][1], transport) as receiver:
        for index, (folder, shapes) in enumerate(models):
            if index == 2:
                one.leave_group(one.joined[-1])
            retries.append(push_weights(Source(folder, shapes), receiver, 21 + index, OneRank())["weight_sync/retries"])
    assert retries == [0, 0, 1]
    assert len(one.joined) == len(two.joined) == 2
    assert_serves(fleet.one, models[2][0], 23)
    assert_serves(fleet.two, models[2][0], 23)


def test_an_update_that_broke_off_is_followed_by_a_whole_one(fleet: Fleet, tmp_path: Path, transport: str) -> None:
    version = 31 + TRANSPORTS.index(transport)
    folder, shapes = new_model(tmp_path, seed=version)
    pool = Pool(fleet.updates(fleet.one), fleet.updates(fleet.two))
    missing = list(shapes)[-1]
    with receiving(pool, shapes, make_transport(transport, tmp_path, folder)) as receiver:
        with pytest.raises(ValueError, match=f"{missing} did not come"):
            push_weights(Source(folder, shapes, missing), receiver, version - 1, OneRank())
        assert pool.given == []
        push_weights(Source(folder, shapes), receiver, version, OneRank())
    assert_serves(fleet.one, folder, version)
    assert_serves(fleet.two, folder, version)


def test_a_server_killed_in_a_broadcast_costs_one_repeat(fleet: Fleet, tmp_path: Path) -> None:
    """The last test: `one` is gone afterwards."""
    folder, shapes = new_model(tmp_path, seed=41)
    middle = len(shapes) // 2
    items = list(shapes.items())
    shapes = dict([*items[:middle], (BALLAST, (BALLAST_BYTES // 4,)), *items[middle:]])
    one, two = fleet.updates(fleet.one), fleet.updates(fleet.two)
    one.victims = fleet.one.processes()
    pool = Pool(one, two)
    transport = BroadcastTransport(caller := Caller(), "127.0.0.1", CPU, seconds=100.0)
    start = time.monotonic()
    with receiving(pool, shapes, (caller, transport)) as receiver:
        metrics = push_weights(Source(folder, shapes), receiver, 41, OneRank())
    assert time.monotonic() - start < 2 * 100.0  # one broadcast given up, one update
    assert metrics["weight_sync/retries"] == 1
    assert pool.given == [([fleet.two.url], 41)]
    assert_serves(fleet.two, folder, 41)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)
