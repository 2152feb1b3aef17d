"""Answers, errors and connections of one server over HTTP."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from megatron_urpo.inference.http import IDLE_SECONDS, HttpServer
from megatron_urpo.protocols import ServerGone, ServerRefused

UVICORN_IDLE_SECONDS = 5.0


class Answers(BaseHTTPRequestHandler):
    """Says from which port of the client a request came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, _, status = self.path.strip("/").partition("/")
        body = {"port": str(self.client_address[1]), "broken": '{"half', "plain": "flushed"}[kind].encode()
        self.send_response(int(status or 200))
        self.send_header("Content-Type", "text/plain" if kind == "plain" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(url: str, *paths: str, pause: float = 0.0) -> list[Any]:
    async def ask() -> list[Any]:
        server = HttpServer(url)
        try:
            answers = []
            for path in paths:
                answers.append(await server.get(path, 10.0))
                await asyncio.sleep(pause)
            return answers
        finally:
            await server.close()

    return asyncio.run(ask())


def test_json_and_text(url: str) -> None:
    port, text = get(url, "/port", "/plain")
    assert (type(port), text) == (int, "flushed")


def test_a_status_other_than_200_is_a_refusal(url: str) -> None:
    with pytest.raises(ServerRefused, match="status 404: flushed") as refused:
        get(url, "/plain/404")
    assert refused.value.status == 404


def test_an_answer_that_is_not_whole_is_none(url: str) -> None:
    with pytest.raises(ServerGone, match="not JSON"):
        get(url, "/broken")


def test_nobody_there() -> None:
    with pytest.raises(ServerGone) as gone:
        get("http://127.0.0.1:9", "/port")
    assert not gone.value.late


def test_a_connection_is_used_again_but_not_after_it_was_idle(url: str) -> None:
    assert IDLE_SECONDS < UVICORN_IDLE_SECONDS - 2
    first, second = get(url, "/port", "/port")
    assert first == second
    first, second = get(url, "/port", "/port", pause=IDLE_SECONDS + 0.2)
    assert first != second
