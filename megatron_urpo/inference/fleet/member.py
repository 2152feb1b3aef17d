"""One server of a fleet and its life.

    healthy -> suspect -> healthy, or -> dead -> restarting -> stale -> healthy
    healthy -> released -> healthy

A request that was not answered makes a server suspect; one that then generates no token, or whose process has ended, is
dead. A server that came back has the weights that it was started with: it is stale, and only an update with the
policy's weights makes it healthy again. A released one has given its memory to the trainer until that update. `gone`
is one that will not come back.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from megatron_urpo.inference.fleet.client import Client, Launcher
from megatron_urpo.inference.process import ServerProcess
from megatron_urpo.protocols import ServerGone, ServerRefused

CHECK_SECONDS = 30.0
POLL_SECONDS = 0.5
ANSWERS_AGAIN = "answers again"


class State(Enum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    RELEASED = "released"
    GONE = "gone"


USABLE = (State.HEALTHY, State.SUSPECT, State.STALE, State.RELEASED)
"""States in which a server takes weights."""


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for a server to start or come back, for the token that proves it alive, between looks at it."""

    ready: float
    check: float = CHECK_SECONDS
    poll: float = POLL_SECONDS


class StartError(RuntimeError):
    """A server did not come up."""


class Member:
    """Belongs to the event loop of its fleet, whose `changed` is called after every change of state."""

    def __init__(
        self,
        client: Client,
        launcher: Launcher | None,
        log: Path,
        patience: Patience,
        max_restarts: int,
        changed: Callable[["Member", str], None],
    ) -> None:
        self.client = client
        self.state = State.RESTARTING
        self.version = -1
        self.capacity = 0
        self.tokens = 0
        """Asked of it and not answered yet: prompts and the longest answers they may get."""
        self.restarts = 0
        self._launcher, self._log, self._patience, self._max_restarts = launcher, log, patience, max_restarts
        self._changed = changed
        self._process: ServerProcess | None = None
        self._suspected = asyncio.Event()

    @property
    def name(self) -> str:
        return self.client.url

    async def start(self) -> None:
        """Until it answers: stale. Raises StartError with the end of its log."""
        if self._launcher is not None:
            self._process = self._launcher.start(self._log)
        try:
            await self._until_ready()
        except StartError:
            await self.stop()
            raise
        if self._process is not None:
            self._process.remember_shared_memory()
        self._become(State.STALE, "up, waits for weights")

    def suspect(self, reason: str) -> None:
        """A request to it failed."""
        if self.state is State.HEALTHY:
            self._become(State.SUSPECT, reason)
            self._suspected.set()

    def lose(self, reason: str) -> None:
        """It holds weights that nobody can vouch for; it is brought back from the start."""
        if self.state in USABLE:
            self._become(State.DEAD, reason)
            self._suspected.set()

    def set_aside(self) -> None:
        """It serves nothing before its next update. Of one that cannot take that nothing changes."""
        if self.state in USABLE:
            self._become(State.RELEASED, "its memory is the trainer's")

    @property
    def is_attached(self) -> bool:
        """Whether it was there before the run and stays after it."""
        return self._launcher is None

    def serve(self, version: int) -> None:
        """It was updated as a whole; of one that has died since nothing changes."""
        if self.state not in USABLE:
            return
        self.version = version
        if self._process is not None:
            self._process.remember_shared_memory()
        if self.state is not State.HEALTHY:
            self._become(State.HEALTHY, f"serves version {version}")

    async def watch(self) -> None:
        """For ever: looks after the server, brings it back when it is dead."""
        while self.state is not State.GONE:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), self._patience.poll)
            self._suspected.clear()
            if self.state is not State.DEAD and self._process is not None and self._process.status is not None:
                self._become(State.DEAD, f"its process ended with status {self._process.status}")
            if self.state is State.SUSPECT:
                await self._examine()
            if self.state is State.DEAD:
                await self._bring_back()

    async def stop(self) -> None:
        """Ends its process, if it is this run's own."""
        if self._process is not None:
            process, self._process = self._process, None
            await asyncio.to_thread(process.stop)

    async def _examine(self) -> None:
        try:
            await self.client.check(self._patience.check)
        except (ServerGone, ServerRefused) as error:
            outcome, reason = State.DEAD, str(error)
        else:
            outcome, reason = State.HEALTHY, ANSWERS_AGAIN
        if self.state is State.SUSPECT:  # not lost or updated meanwhile
            self._become(outcome, reason)

    async def _bring_back(self) -> None:
        if self.restarts >= self._max_restarts:
            await self.stop()
            self._become(State.GONE, f"not started again: {self.restarts} times is rollout's max_restarts")
            return
        self.restarts += 1
        self.version = -1
        await self.stop()
        self.client.updates.started_anew()
        self._become(State.RESTARTING, f"restart {self.restarts} of {self._max_restarts}")
        try:
            await self.start()
        except StartError as error:
            self._become(State.GONE, f"it did not come back: {error}")

    async def _until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._patience.ready
        reason = ""
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            if self._process is not None and self._process.status is not None:
                lines = self._process.last_lines()
                raise StartError(f"its process ended with status {self._process.status}:\n{lines}")
            try:
                await self.client.check(min(left, self._patience.check))
                return
            except (ServerGone, ServerRefused) as error:
                reason = str(error)
            await asyncio.sleep(self._patience.poll)
        end = f":\n{self._process.last_lines()}" if self._process is not None else f" ({reason})"
        raise StartError(f"not ready after {self._patience.ready:g} s{end}")

    def _become(self, state: State, reason: str) -> None:
        self.state = state
        self._changed(self, reason)
