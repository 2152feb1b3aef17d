"""JSON over HTTP with a server that may be slow, dead or talking nonsense: an answer, or one of two typed errors.

Connections are kept open and used again; how many requests are in flight is for the caller to bound.
"""

import asyncio
import json
from typing import Any

import aiohttp

from megatron_urpo.protocols import ServerGone, ServerRefused

JSON = "application/json"
IDLE_SECONDS = 2.0
"""After which a connection is not used again: servers (uvicorn) close those that were idle for five, and a request that
crosses with that is lost."""
MAX_ANSWER_CHARACTERS = 300


class HttpServer:
    """One server and its connections. Belongs to the event loop that first uses it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, seconds: float) -> Any:
        return await self._ask("GET", path, None, seconds)

    async def post(self, path: str, body: Any, seconds: float) -> Any:
        """The answer: decoded where the server says that it is JSON, else its text.

        Raises ServerRefused for any status but 200, ServerGone for a connection that fails or breaks, an answer that is
        not whole, and no answer within `seconds`.
        """
        return await self._ask("POST", path, body, seconds)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, path: str, body: Any, seconds: float) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        try:
            async with asyncio.timeout(seconds), self._session.request(method, self.url + path, json=body) as answer:
                status, is_json, text = answer.status, answer.content_type == JSON, await answer.text()
        except TimeoutError:
            raise ServerGone(f"{self.url}{path}: no answer within {seconds:g} s", late=True) from None
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise ServerGone(f"{self.url}{path}: {type(error).__name__}: {error}") from None
        if status != 200:
            raise ServerRefused(f"{self.url}{path}: status {status}: {text[:MAX_ANSWER_CHARACTERS]}", status)
        try:
            return json.loads(text) if is_json else text
        except ValueError:
            raise ServerGone(f"{self.url}{path}: not JSON: {text[:MAX_ANSWER_CHARACTERS]!r}") from None
