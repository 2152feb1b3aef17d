"""A server over a real socket that speaks SGLang's HTTP and behaves on cue: late, wrong, broken off, dead.

It generates nothing: a script says what each request gets. It takes the time of its tokens, keeps a bounded number of
requests running and lets the others wait in the order in which they came, as a real one does.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from megatron_urpo.inference.background import BackgroundLoop
from tests.support import scripted_form as form
from tests.support.scripted_form import Asked, Cue, Script, as_it_should
from tests.support.scripted_load import ScriptedLoad
from tests.support.scripted_memory import MEMORY, ScriptedMemory
from tests.support.scripted_weights import UPDATES, ScriptedWeights

LOOPBACK = "127.0.0.1"
MAX_BODY_BYTES = 2**30
CLOSING_SECONDS = 0.05
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Record:
    """One request to /generate.

    `outcome`: `waiting`, and at its end the fate that it met, `refused` for a status, `killed` where it ended the
    server, `released` where it had no memory, `gone` where the client left first.
    """

    asked: Asked
    outcome: str = "waiting"


class ScriptedServer:
    """Serves from its creation until `close`, in a thread of its own. What it recorded may be read at any time."""

    def __init__(
        self,
        script: Script = as_it_should,
        *,
        slots: int = 64,
        seconds_per_token: float = 0.0,
        vocab_size: int = 127,
        context: int = 4096,
        cache_tokens: int = 16384,
        dtype: str = "bfloat16",
        model_path: str = "scripted",
        device: str = "cuda",
        memory_saver: bool = False,
    ) -> None:
        self.script, self.seconds_per_token = script, seconds_per_token
        self.healthy = True
        self.records: list[Record] = []
        self.calls: list[tuple[str, Any]] = []
        """Path and body of every POST but /generate."""
        self._slots, self._vocab_size, self._context = slots, vocab_size, context
        self._cache_tokens, self._dtype, self._model_path = cache_tokens, dtype, model_path
        self._device, self._memory_saver = device, memory_saver
        self.refused_orders: set[str] = set()
        """Paths of POSTs that are answered with status 500."""
        self._port = 0
        self._closing = asyncio.Lock()
        self._loop = BackgroundLoop("scripted server")
        self.revive()

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.records]

    def die(self) -> None:
        """Breaks every connection off and listens no more."""
        self._loop.wait(self._die())

    def revive(self) -> None:
        """Listens on the same port again, with the weights that it was started with and no load."""
        self._loop.wait(self._listen())

    def close(self) -> None:
        self.die()
        self._loop.close()

    async def _listen(self) -> None:
        self.weights, self.load = ScriptedWeights(), ScriptedLoad(self._slots)
        self.memory = ScriptedMemory(self._memory_saver)
        looks = {
            "/health": self._health, "/model_info": self._model_info, "/server_info": self._server_info,
            "/v1/loads": self._loads,
        }  # fmt: skip
        orders = {
            "/pause_generation": self._pause, "/continue_generation": self._continue, "/abort_request": self._abort,
            "/flush_cache": self._flush, **dict.fromkeys(UPDATES, self._update),
            **dict.fromkeys(MEMORY, self._change_memory),
        }  # fmt: skip
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.add_routes([web.get(path, handler) for path, handler in looks.items()])
        application.add_routes([web.post(path, self._noted(handler)) for path, handler in orders.items()])
        application.add_routes([web.post("/generate", self._generate)])
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSING_SECONDS
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _die(self) -> None:
        async with self._closing:  # one that a request ended may be closed meanwhile
            for site in list(self._runner.sites):
                await site.stop()
            for connection in self._runner.server.connections if self._runner.server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = form.read_asked(await request.json())
        except (LookupError, TypeError, ValueError) as error:
            return web.Response(status=500, text=f"Internal Server Error: {error}")
        number, record = len(self.records), Record(asked)
        self.records.append(record)
        try:
            return await self._follow(request, number, record, self.script(number, asked))
        except asyncio.CancelledError:
            if record.outcome == "waiting":
                record.outcome = "gone"
            raise

    async def _follow(self, request: web.Request, number: int, record: Record, cue: Cue) -> web.StreamResponse:
        refusal = form.refusal_of(record.asked, self._context)
        if refusal is not None or cue.status != 200:
            record.outcome = "refused"
            status, message = (cue.status, cue.message) if refusal is None else (400, refusal)
            return web.json_response({"error": {"message": message}}, status=status)
        if not all(0 <= i < self._vocab_size for i in record.asked.prompt_ids):
            record.outcome = "killed"
            return await self._end()  # as the real one does
        if cue.fate == "hang":
            record.outcome = "hang"
            return await _never()
        async with self.load.slot(number, record.asked):
            return await self._run(request, record, cue)

    async def _run(self, request: web.Request, record: Record, cue: Cue) -> web.StreamResponse:
        if self.memory.missing:
            record.outcome = "released"
            return web.Response(status=500, text=f"{sorted(self.memory.missing)} are not in memory")
        asked = record.asked
        tokens = form.completion_of(asked, cue, self._vocab_size)
        finish = form.finish_of(asked, tokens)
        version = self.weights.version if cue.version is None else cue.version
        seconds = cue.seconds + self.seconds_per_token * len(tokens)
        share = await self.load.spend(seconds)
        fate = "abort" if share < 1 else cue.fate
        if fate == "abort":
            written = share if share < 1 else form.ABORTED_SHARE
            tokens, finish = tokens[: int(len(tokens) * written)], form.ABORTED
        record.outcome = fate  # before the client can know of it
        if fate == "crash":
            return await _broken_off(request)
        body = form.bytes_of(form.answer_of(asked, tokens, finish, version, seconds * share), fate)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        if fate == "half":
            await response.write(body[: len(body) // 2])
            return await _broken_off(request)
        await response.write_eof(body)
        return response

    def _noted(self, handler: Handler) -> Handler:
        async def note(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            self.calls.append((request.path, json.loads(body) if body else None))
            if request.path in self.refused_orders:
                return web.Response(status=500, text="by cue")
            return await handler(request)

        return note

    async def _pause(self, request: web.Request) -> web.Response:
        await self.load.pause()
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, request: web.Request) -> web.Response:
        self.load.go_on()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def _abort(self, request: web.Request) -> web.Response:
        """All requests, whichever are named: the project's client names none."""
        await self.load.abort()
        return web.Response()

    async def _flush(self, request: web.Request) -> web.Response:
        if self.load.active:
            return web.Response(status=400, text="Flush cache failed.\n")
        return web.Response(text="Cache flushed.\n")

    async def _change_memory(self, request: web.Request) -> web.StreamResponse:
        if self.memory.survives(request.path, (await request.json())["tags"], self.load.active == 0):
            return web.json_response(None)
        return await self._end()

    async def _end(self) -> web.StreamResponse:
        self._dying = asyncio.create_task(self._die())
        return await _never()

    async def _update(self, request: web.Request) -> web.StreamResponse:
        if "weights" in self.memory.missing:
            return await self._end()  # it would write where no memory is
        answer = self.weights.update(request.path, await request.json())
        return web.json_response(answer, status=200 if answer["success"] else 400)

    async def _health(self, request: web.Request) -> web.Response:
        await self.load.until_going()
        return web.Response(status=200 if self.healthy else 503)

    async def _model_info(self, request: web.Request) -> web.Response:
        return web.json_response(form.model_info(self._model_path, self.weights.version))

    async def _server_info(self, request: web.Request) -> web.Response:
        info = form.server_info(self._model_path, self.weights.version, self._dtype, self._context)
        limits = {"max_total_num_tokens": self._cache_tokens, "max_running_requests": self._slots}
        limits |= {"device": self._device, "enable_memory_saver": self._memory_saver}
        return web.json_response({**info, **limits})

    async def _loads(self, request: web.Request) -> web.Response:
        running = self.load.running
        load = {"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": self.load.active - running}
        return web.json_response({"version": form.VERSION, "num_accelerators": 1, "loads": [load]})


async def _never() -> web.StreamResponse:
    """Until the connection is closed, which cancels the handler."""
    await asyncio.Event().wait()
    raise AssertionError


async def _broken_off(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()  # what was written still leaves, then the connection ends
    return await _never()
