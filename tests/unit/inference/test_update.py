"""The order in which one server's weights are replaced, against the scripted server."""

from collections.abc import Iterator
from typing import Any

import pytest

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.sglang.update import SGLangUpdates
from megatron_urpo.protocols import ServerGone, ServerRefused
from tests.support.scripted_server import ScriptedServer
from tests.support.scripted_weights import ScriptedWeights

BEGIN = ["/pause_generation", "/begin_weight_update"]
END = ["/end_weight_update", "/flush_cache", "/update_weight_version"]


class NeverStamped(ScriptedWeights):
    def update(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/update_weight_version":
            return {"success": True, "message": "as if"}
        return super().update(path, body)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


@pytest.fixture
def updates(server: ScriptedServer) -> Iterator[SGLangUpdates]:
    background = BackgroundLoop("updates")
    made = SGLangUpdates(HttpServer(server.url), background, tensor=2, seconds=20.0)
    yield made
    background.wait(made.close())
    background.close()


def paths(server: ScriptedServer) -> list[str]:
    return [path for path, _ in server.calls]


def test_an_update_stamps_its_version_at_the_end(server: ScriptedServer, updates: SGLangUpdates) -> None:
    updates.begin_update()
    updates.load_tensors([b"one", b"two"])
    assert server.weights.version == "default"
    updates.end_update(7)
    assert server.weights.version == "7"
    assert paths(server) == [*BEGIN, "/update_weights_from_tensor", *END, "/continue_generation"]
    sent = dict(server.calls)["/update_weights_from_tensor"]
    assert sent == {"serialized_named_tensors": ["b25l", "dHdv"], "flush_cache": False}


def test_an_update_that_broke_off_is_closed_first(server: ScriptedServer, updates: SGLangUpdates) -> None:
    updates.begin_update()
    updates.begin_update()
    updates.end_update(8)
    assert paths(server)[2:6] == [*BEGIN, "/end_weight_update", "/begin_weight_update"]
    assert server.weights.version == "8"


def test_a_version_that_is_not_stamped_is_found_out(server: ScriptedServer, updates: SGLangUpdates) -> None:
    """Generation is not continued then."""
    server.weights = NeverStamped()
    updates.begin_update()
    with pytest.raises(ServerRefused, match="weight_version is 'default' after it was set to 9"):
        updates.end_update(9)
    assert "/continue_generation" not in paths(server)


def test_a_server_that_is_gone_is_told_from_one_that_refuses(server: ScriptedServer, updates: SGLangUpdates) -> None:
    with pytest.raises(ServerRefused) as refused:
        updates.load_tensors([b"one", b"two"])
    assert refused.value.status == 400
    server.die()
    with pytest.raises(ServerGone):
        updates.begin_update()
    server.revive()
