"""Which requests of the scripted server run and which wait: slots in the order of arrival, time, aborts, pauses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.scripted_form import Asked


class ScriptedLoad:
    """Belongs to the server's event loop; what it counted may be read from everywhere."""

    def __init__(self, slots: int) -> None:
        self.admitted: list[int] = []
        """Numbers of the requests in the order in which they began to run."""
        self.active = self.running = self.max_running = 0
        """Requests that run or wait for a slot, and those that run: now, and the most at any time."""
        self.tokens = self.max_tokens = 0
        """Of those that run or wait, prompts and the longest answers: now, and the most at any time."""
        self._slots = asyncio.Semaphore(slots)
        self._going, self._aborting, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._going.set()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def slot(self, number: int, asked: Asked) -> AsyncIterator[None]:
        """Around the time in which a request runs; those that come during a pause wait for its end first."""
        await self._going.wait()
        self.active += 1
        self._idle.clear()
        self.tokens += asked.num_tokens
        self.max_tokens = max(self.max_tokens, self.tokens)
        try:
            async with self._slots:
                self.admitted.append(number)
                self.running += 1
                self.max_running = max(self.max_running, self.running)
                try:
                    yield
                finally:
                    self.running -= 1
        finally:
            self.tokens -= asked.num_tokens
            self.active -= 1
            if self.active == 0:
                self._idle.set()

    async def spend(self, seconds: float) -> float:
        """Lets `seconds` pass, or fewer where everything is aborted; the share of them that passed."""
        if seconds == 0:
            return 1.0
        started = asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._aborting.wait(), seconds)
        except TimeoutError:
            return 1.0
        return min(1.0, (asyncio.get_running_loop().time() - started) / seconds)

    async def abort(self) -> None:
        """Ends what runs or waits for a slot; returns when it has ended."""
        self._aborting.set()
        await self._idle.wait()
        self._aborting.clear()

    async def pause(self) -> None:
        """As SGLang does in mode `abort`: nothing runs any more, what comes waits."""
        self._going.clear()
        await self.abort()

    def go_on(self) -> None:
        self._going.set()

    async def until_going(self) -> None:
        await self._going.wait()
