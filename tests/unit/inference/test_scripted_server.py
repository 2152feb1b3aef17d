"""The scripted server does what its cues say, over a real socket."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.inference.http import HttpServer
from megatron_urpo.protocols import ServerGone, ServerRefused
from tests.support.scripted_form import FILLER, Asked, Cue, Fate, logprob
from tests.support.scripted_server import ScriptedServer

STOP = 2
SECONDS = 20.0  # far above what anything here takes
SLOW = Cue(seconds=1000)


def body(*prompt: int, new: int = 4, **sampling: Any) -> dict[str, Any]:
    params = {"max_new_tokens": new, "temperature": 1.0, "stop_token_ids": [STOP], **sampling}
    return {"input_ids": list(prompt) or [5, 6], "sampling_params": params, "return_logprob": True}


def run(server: ScriptedServer, scenario: Callable[[HttpServer], Awaitable[None]]) -> None:
    async def main() -> None:
        http = HttpServer(server.url)
        try:
            async with asyncio.timeout(SECONDS):
                await scenario(http)
        finally:
            await http.close()

    asyncio.run(main())


def ask(server: ScriptedServer, request: dict[str, Any]) -> Any:
    answers = []

    async def scenario(http: HttpServer) -> None:
        answers.append(await http.post("/generate", request, SECONDS))

    run(server, scenario)
    return answers[0]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def on_cue(*cues: Cue) -> Callable[[int, Asked], Cue]:
    """The cues in the order of the requests, the last for all that follow."""
    return lambda number, asked: cues[min(number, len(cues) - 1)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


def test_tokens_end_at_a_stop_token_or_at_the_limit(server: ScriptedServer) -> None:
    server.script = on_cue(Cue((7, 8)), Cue((7, STOP, 9)), Cue((7, 8, 9)), Cue())
    expected: list[tuple[list[int], dict[str, Any]]] = [
        ([7, 8, STOP], {"type": "stop", "matched": STOP}),
        ([7, STOP], {"type": "stop", "matched": STOP}),
        ([7, 8, 9], {"type": "length", "length": 3}),
        ([FILLER] * 3, {"type": "length", "length": 3}),
    ]
    for tokens, finish in expected:
        answer = ask(server, body(5, new=3))
        meta = answer["meta_info"]
        assert (answer["output_ids"], meta["finish_reason"]) == (tokens, finish)
        assert meta["output_token_logprobs"] == [[logprob(i), i, None] for i in tokens]
        assert meta["weight_versions"] == [{"version": "default", "start": 0, "end": len(tokens)}]
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (1, len(tokens))
    assert [logprob(7), logprob(8), logprob(9)] == [-0.25, -0.5, -0.75]
    assert server.outcomes == ["answer"] * 4


@pytest.mark.parametrize("fate", ["crash", "half"])
def test_a_connection_breaks_off(server: ScriptedServer, fate: Fate) -> None:
    server.script = on_cue(Cue(fate=fate), Cue())

    async def scenario(http: HttpServer) -> None:
        with pytest.raises(ServerGone, match="ServerDisconnected" if fate == "crash" else "ClientPayloadError"):
            await http.post("/generate", body(), SECONDS)
        await http.post("/generate", body(), SECONDS)

    run(server, scenario)
    assert server.outcomes == [fate, "answer"]


def test_a_hanging_request_holds_up_no_other_and_no_pause(server: ScriptedServer) -> None:
    server.script = on_cue(Cue(fate="hang"), Cue())

    async def scenario(http: HttpServer) -> None:
        hanging = asyncio.create_task(http.post("/generate", body(), SECONDS))
        await until(lambda: server.outcomes == ["hang"])
        await http.post("/generate", body(), SECONDS)
        await http.post("/pause_generation", {"mode": "abort"}, SECONDS)
        assert not hanging.done()
        hanging.cancel()

    run(server, scenario)


def test_wrong_answers(server: ScriptedServer) -> None:
    server.script = on_cue(*(Cue(fate=fate) for fate in ("few_logprobs", "foreign_token", "too_many_tokens", "abort")))
    few, foreign, many, aborted = (ask(server, body()) for _ in range(4))
    assert (len(few["output_ids"]), len(few["meta_info"]["output_token_logprobs"])) == (4, 3)
    assert foreign["output_ids"] == [FILLER, FILLER, FILLER, 127]
    assert many["output_ids"] == [FILLER] * 5
    assert len(many["meta_info"]["output_token_logprobs"]) == 5
    assert (aborted["output_ids"], aborted["meta_info"]["finish_reason"]["type"]) == ([FILLER, FILLER], "abort")


def test_answers_of_another_form(server: ScriptedServer) -> None:
    server.script = on_cue(Cue(fate="not_json"), Cue(fate="other_json"))
    with pytest.raises(ServerGone, match="not JSON"):
        ask(server, body())
    assert "output_ids" not in ask(server, body())


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_status_with_a_message(server: ScriptedServer, status: int) -> None:
    server.script = on_cue(Cue(status=status, message="no room"))
    with pytest.raises(ServerRefused, match="no room") as refused:
        ask(server, body())
    assert refused.value.status == status
    assert server.outcomes == ["refused"]


def test_requests_that_a_real_server_refuses(server: ScriptedServer) -> None:
    empty = {**body(), "input_ids": []}
    for request, status in ((empty, 400), (body(*[5] * 4090), 400), (body(nonsense=1), 500), ({}, 500)):
        with pytest.raises(ServerRefused) as refused:
            ask(server, request)
        assert refused.value.status == status


@pytest.mark.parametrize("token", [-1, 127])
def test_a_token_outside_the_vocabulary_kills_the_server(server: ScriptedServer, token: int) -> None:
    with pytest.raises(ServerGone):
        ask(server, body(5, token))
    with pytest.raises(ServerGone, match="ClientConnectorError"):
        ask(server, body(5))


def test_slots_are_taken_in_the_order_of_arrival() -> None:
    with ScriptedServer(on_cue(SLOW, SLOW, Cue()), slots=2) as server:

        async def scenario(http: HttpServer) -> None:
            tasks = []
            for _ in range(6):
                tasks.append(asyncio.create_task(http.post("/generate", body(5, new=4), SECONDS)))
                await until(lambda: len(server.records) == len(tasks))
            loads = (await http.get("/v1/loads", SECONDS))["loads"][0]
            assert (loads["num_running_reqs"], loads["num_waiting_reqs"]) == (2, 4)
            for task in tasks[:2]:
                task.cancel()
            await asyncio.gather(*tasks[2:])
            await until(lambda: server.load.active == 0)

        run(server, scenario)
        assert server.load.admitted == list(range(6))
        assert (server.load.max_running, server.load.running) == (2, 0)
        assert (server.load.max_tokens, server.load.tokens) == (6 * 5, 0)
        assert server.outcomes == ["gone"] * 2 + ["answer"] * 4


def test_tokens_take_time() -> None:
    with ScriptedServer(on_cue(Cue(seconds=0.1)), seconds_per_token=0.05) as server:
        started = time.monotonic()
        ask(server, body(new=4))
        assert time.monotonic() - started > 0.29  # a timer fires early by its resolution at most


def test_a_client_that_leaves_frees_its_slot() -> None:
    with ScriptedServer(on_cue(SLOW, Cue()), slots=1) as server:

        async def scenario(http: HttpServer) -> None:
            with pytest.raises(ServerGone, match="no answer within"):
                await http.post("/generate", body(), 2.0)
            await http.post("/generate", body(), SECONDS)

        run(server, scenario)
        assert server.outcomes == ["gone", "answer"]


def test_a_pause_breaks_off_what_runs_and_waits_and_holds_what_comes() -> None:
    with ScriptedServer(on_cue(SLOW, SLOW, Cue()), slots=1) as server:

        async def scenario(http: HttpServer) -> None:
            broken = [asyncio.create_task(http.post("/generate", body(), SECONDS)) for _ in range(2)]
            await until(lambda: server.load.active == 2)
            with pytest.raises(ServerRefused, match="Flush cache failed"):
                await http.post("/flush_cache", {}, SECONDS)
            await http.post("/pause_generation", {"mode": "abort"}, SECONDS)
            for task in broken:
                assert (await task)["meta_info"]["finish_reason"]["type"] == "abort"
            later = asyncio.create_task(http.post("/generate", body(), SECONDS))
            await until(lambda: len(server.records) == 3)
            with pytest.raises(ServerGone, match="no answer within"):
                await http.get("/health", 0.1)
            await http.post("/flush_cache", {}, SECONDS)
            assert not later.done()
            await http.post("/continue_generation", {}, SECONDS)
            assert (await later)["meta_info"]["finish_reason"]["type"] == "length"

        run(server, scenario)
        assert server.outcomes == ["abort", "abort", "answer"]
        assert server.calls[1] == ("/pause_generation", {"mode": "abort"})


def test_updates_have_an_order_and_stamp_the_version(server: ScriptedServer, tmp_path: Path) -> None:
    tensors = {"serialized_named_tensors": ["AAAA"], "flush_cache": False}

    async def scenario(http: HttpServer) -> None:
        async def refused(path: str, request: Any) -> None:
            with pytest.raises(ServerRefused) as error:
                await http.post(path, request, SECONDS)
            assert error.value.status == 400

        await refused("/update_weights_from_tensor", tensors)
        await refused("/end_weight_update", {})
        assert (await http.post("/begin_weight_update", {}, SECONDS))["success"]
        await refused("/begin_weight_update", {})
        assert (await http.post("/update_weights_from_tensor", tensors, SECONDS))["success"]
        assert (await http.post("/end_weight_update", {}, SECONDS))["success"]
        assert (await http.get("/model_info", SECONDS))["weight_version"] == "default"
        await http.post("/update_weight_version", {"new_version": "7", "abort_all_requests": False}, SECONDS)
        answer = await http.post("/generate", body(), SECONDS)
        assert answer["meta_info"]["weight_versions"] == [{"version": "7", "start": 0, "end": 4}]
        await refused("/update_weights_from_disk", {"model_path": str(tmp_path / "none"), "weight_version": "8"})
        await http.post("/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "9"}, SECONDS)
        assert (await http.get("/server_info", SECONDS))["weight_version"] == "9"

    run(server, scenario)
    server.script = on_cue(Cue(version="1"))
    assert ask(server, body())["meta_info"]["weight_version"] == "1"


def test_a_server_dies_and_comes_back_with_its_first_weights(server: ScriptedServer) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    server.script = on_cue(SLOW, Cue())

    async def scenario(http: HttpServer) -> None:
        await http.post("/update_weight_version", {"new_version": "3", "abort_all_requests": False}, SECONDS)
        running = asyncio.create_task(http.post("/generate", body(), SECONDS))
        await until(lambda: server.load.running == 1)
        await asyncio.to_thread(server.die)
        with pytest.raises(ServerGone):
            await running
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        await asyncio.to_thread(server.revive)
        answer = await http.post("/generate", body(), SECONDS)
        assert answer["meta_info"]["weight_version"] == "default"

    run(server, scenario)
    assert server.outcomes == ["gone", "answer"]


def test_health_is_what_the_test_says(server: ScriptedServer) -> None:
    async def scenario(http: HttpServer) -> None:
        assert await http.get("/health", SECONDS) == ""
        server.healthy = False
        with pytest.raises(ServerRefused, match="status 503"):
            await http.get("/health", SECONDS)

    run(server, scenario)


def test_the_script_sees_the_request(server: ScriptedServer) -> None:
    seen: list[tuple[int, Asked]] = []

    def script(number: int, asked: Asked) -> Cue:
        seen.append((number, asked))
        return Cue(asked.prompt_ids[::-1])

    server.script = script
    answer = ask(server, body(5, 6, new=9, temperature=0.5, sampling_seed=2**62))
    assert answer["output_ids"] == [6, 5, STOP]
    assert seen == [(0, Asked((5, 6), 9, 0.5, (STOP,), 2**62))]
