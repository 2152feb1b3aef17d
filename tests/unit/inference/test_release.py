"""Servers that give their memory to the trainer: the order, what fails, who is asked meanwhile, what is refused."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from megatron_urpo.config import ConfigError, check_config
from megatron_urpo.config.engine import ServersConfig, VLLMServersConfig
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.connect import check_engine
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.inference.fleet.member import State
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.sglang.launch import SGLangLauncher
from megatron_urpo.inference.vllm.accept import check_info
from megatron_urpo.inference.vllm.launch import VLLMLauncher
from megatron_urpo.inference.vllm.update import VLLMUpdates
from megatron_urpo.protocols import PushAgain, WeightsLost
from megatron_urpo.types import GenerationRequest
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.servers import ServerWeights
from megatron_urpo.weight_sync.tensor import TensorTransport
from tests.support.rollout import make_config
from tests.support.scripted_fleet import connect_scripted, scripted_config
from tests.support.scripted_server import ScriptedServer
from tests.unit.inference.test_vllm import TELLS

SHAPES = {"model.embed_tokens.weight": (4, 2)}
WEIGHTS = {name: torch.ones(shape) for name, shape in SHAPES.items()}
RELEASE = ["/pause_generation", "/flush_cache", "/release_memory_occupation"]
UPDATE = [
    "/resume_memory_occupation",
    "/pause_generation",
    "/begin_weight_update",
    "/update_weights_from_tensor",
    "/resume_memory_occupation",
    "/end_weight_update",
    "/flush_cache",
    "/update_weight_version",
    "/continue_generation",
]


@contextlib.contextmanager
def fleet(count: int = 1) -> Iterator[tuple[FleetEngine, ServerWeights, list[ScriptedServer]]]:
    """The engine, what sends weights to it, and its servers, which serve version 0."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ScriptedServer(memory_saver=True)) for _ in range(count)]
        config = scripted_config([server.url for server in servers], {"ready_seconds": 20.0, "request_seconds": 20.0})
        engine = stack.enter_context(contextlib.closing(connect_scripted(config, [2], 127)))
        caller = Caller()
        cpu = torch.device("cpu")
        receiver = ServerWeights(
            engine, caller, TensorTransport(caller), shapes=SHAPES, dtype=torch.float32, device=cpu, bucket_bytes=2**20
        )
        stack.enter_context(contextlib.closing(receiver))
        for server in servers:
            server.calls.clear()
        yield engine, receiver, servers


def ask(engine: FleetEngine) -> None:
    async def asked() -> None:
        await engine.generate(GenerationRequest((5, 6, 7), 1, 8, 1.0, 0, (1, 0), 0))

    asyncio.run(asked())


def states(engine: FleetEngine) -> list[State]:
    return [member.state for member in engine._members]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_steps() -> None:
    with fleet() as (engine, receiver, (server,)):
        for version in (1, 2):
            ask(engine)
            receiver.release()
            assert server.memory.missing == {"kv_cache", "weights"}
            receiver.update_weights(WEIGHTS.items(), version)
            assert server.memory.missing == set()
        ask(engine)
        assert server.outcomes == ["answer"] * 3
        assert [path for path, _ in server.calls] == [*RELEASE, *UPDATE] * 2
        tags = [body["tags"] for path, body in server.calls if path.endswith("memory_occupation")]
        assert tags == [["kv_cache", "weights"], ["weights"], ["kv_cache"]] * 2
        assert 0 < receiver.metrics()["time/release"] < 20


def test_no_release_no_resume() -> None:
    """A resume of what was never released ends a real server."""
    with fleet() as (_, receiver, (server,)):
        receiver.update_weights(WEIGHTS.items(), 1)
        assert not [path for path, _ in server.calls if path.endswith("memory_occupation")]
        assert "time/release" not in receiver.metrics()


def test_a_released_server_is_asked_nothing() -> None:
    with fleet() as (engine, receiver, (server,)):
        receiver.release()
        with pytest.raises(WeightsLost):
            ask(engine)
        assert (server.records, states(engine), engine.version) == ([], [State.RELEASED], -1)
        receiver.update_weights(WEIGHTS.items(), 1)
        ask(engine)
        assert server.outcomes == ["answer"]


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation"])
def test_a_server_that_fails_is_lost_and_comes_back_with_nothing_released(path: str) -> None:
    with fleet(2) as (engine, receiver, (first, second)):
        first.refused_orders = {path}
        receiver.release()
        if path.startswith("/resume"):
            with pytest.raises(PushAgain, match="by cue"):
                receiver.update_weights(WEIGHTS.items(), 1)
        first.die()
        first.refused_orders = set()
        receiver.update_weights(WEIGHTS.items(), 1)
        ask(engine)
        assert second.outcomes == ["answer"]
        first.revive()
        wait_for(lambda: states(engine) == [State.STALE, State.HEALTHY])
        first.calls.clear()
        receiver.update_weights(WEIGHTS.items(), 2)
        assert states(engine) == [State.HEALTHY] * 2
        assert "/resume_memory_occupation" not in [path for path, _ in first.calls]


def test_a_server_that_dies_while_it_is_released() -> None:
    with fleet(2) as (engine, receiver, (first, second)):
        receiver.release()
        first.die()
        with pytest.raises(PushAgain):
            receiver.update_weights(WEIGHTS.items(), 1)
        receiver.update_weights(WEIGHTS.items(), 1)
        assert [path for path, _ in second.calls].count("/resume_memory_occupation") == 2
        ask(engine)


def test_a_run_that_ends_without_an_update_leaves_others_servers_as_it_found_them() -> None:
    """They generate, but by no version."""
    with ScriptedServer(memory_saver=True) as server:
        engine = connect_scripted(scripted_config([server.url], {}), [2], 127)
        for updates in engine.set_aside():
            updates.release()
        engine.close()
        assert (server.memory.missing, server.weights.version) == (set(), "released")
        assert server.calls[-1][0] == "/continue_generation"


CPU = {"sglang": {"flags": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"engine": "embedded"}, "with rollout.engine embedded"),
        ({"engine": "sglang", "overlap": 1}, "with rollout.overlap 1"),
        ({"engine": "sglang", **CPU}, "with rollout.sglang.flags device cpu"),
        ({"engine": "sglang", "sglang": {"flags": {"enable-memory-saver": False}}}, "enable-memory-saver False"),
        ({"engine": "vllm", "vllm": {"flags": {"enable-sleep-mode": False}}}, "enable-sleep-mode False"),
        ({"engine": "vllm"}, None),
        ({"engine": "sglang", "sglang": {"flags": {"enable-memory-saver": True}}}, None),
    ],
)
def test_what_cannot_work_is_refused(rollout: dict[str, Any], message: str | None) -> None:
    config = make_config(rollout={**rollout, "release_memory": True}, loss={"rollout_correction": "token_tis"})
    if message is None:
        check_config(config)
        return
    with pytest.raises(ConfigError, match=rf"^rollout\.release_memory: true .*{message}") as caught:
        check_config(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"memory_saver": True}, None),
        ({"memory_saver": False}, "started without --enable-memory-saver"),
        ({"memory_saver": True, "device": "cpu"}, "runs on a CPU"),
    ],
)
def test_servers_that_would_keep_their_memory(server: dict[str, Any], message: str | None) -> None:
    with ScriptedServer(**server) as scripted:
        config = scripted_config([scripted.url], {}, rollout={"release_memory": True})
        with contextlib.nullcontext() if message is None else pytest.raises(ConfigError, match=message):
            check_engine(config, 127)


@pytest.mark.parametrize(
    ("device", "releases", "message"),
    [("cuda", True, None), ("cuda", False, "without --enable-sleep-mode"), ("cpu", True, "on a CPU")],
)
def test_vllm_servers_that_would_keep_their_memory(device: str, releases: bool, message: str | None) -> None:
    config = make_config(rollout={"engine": "vllm", "release_memory": True})
    info = replace(TELLS, device=device, releases_memory=releases, context=2**20)
    with contextlib.nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        check_info(config, "http://127.0.0.1:1", info)


async def _record(paths: list[str], port: "asyncio.Future[int]", done: asyncio.Event) -> None:
    """A server that knows of vLLM's answers what an update looks at, and notes what it is asked."""

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path_qs)
        return web.json_response({"success": True, "weight_version": "3"})

    application = web.Application()
    application.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port.set_result(runner.addresses[0][1])
    await done.wait()
    await runner.cleanup()


def test_what_is_asked_of_vllm() -> None:
    paths: list[str] = []

    async def update() -> None:
        port, done = asyncio.get_running_loop().create_future(), asyncio.Event()
        recording = asyncio.create_task(_record(paths, port, done))
        background = BackgroundLoop("updates")
        updates = VLLMUpdates(HttpServer(f"http://127.0.0.1:{await port}"), background, tensor=1, seconds=20.0)

        def calls() -> None:
            updates.release()
            updates.resume("weights")
            updates.begin_update()
            updates.resume("kv_cache")
            updates.end_update(3)
            updates.resume("weights")  # is there already

        await asyncio.to_thread(calls)
        background.wait(updates.close())
        background.close()
        done.set()
        await recording

    asyncio.run(update())
    release = ["/pause?mode=abort", "/reset_prefix_cache", "/sleep?level=1"]
    begin = ["/wake_up?tags=weights", "/pause?mode=abort", "/wake_up?tags=kv_cache"]
    assert paths == [*release, *begin, "/reset_prefix_cache", "/update_weight_version", "/weight_info", "/resume"]


@pytest.mark.parametrize("given", [{}, {"flag": True}])
def test_the_flag_is_added_once(given: dict[str, bool]) -> None:
    for launcher, config, flag in (
        (SGLangLauncher, ServersConfig, "enable-memory-saver"),
        (VLLMLauncher, VLLMServersConfig, "enable-sleep-mode"),
    ):
        servers = config(flags={flag: True} if given else {})
        words = launcher(servers, Path("model"), 0, 1, release_memory=True).command()
        assert words.count(f"--{flag}") == 1
        plain = launcher(config(), Path("model"), 0, 1).command()
        assert f"--{flag}" not in plain
