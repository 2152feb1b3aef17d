"""An engine made of servers. It lives in a thread of its own, so servers are watched and restarted while others train.

A request is sent again where that is safe: a completion that was lost is sampled anew, and nothing of the lost one was
used. Every cause is counted. A request that a server refuses is not repeated: it would be refused again.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.admission import Admission
from megatron_urpo.inference.fleet.client import BadAnswer, Client, Launcher
from megatron_urpo.inference.fleet.member import USABLE, Member, Patience, StartError, State
from megatron_urpo.protocols import (
    EngineError,
    GenerationFailed,
    ServerGone,
    ServerRefused,
    UpdatableServer,
)
from megatron_urpo.types import Completion, GenerationRequest

MAX_ATTEMPTS = 3
FIRST_SERVER_ERROR = 500  # statuses from here on are the server's trouble, not the request's
INFO_SECONDS = 60.0
CACHES_IN_FLIGHT = 4  # most answers end long before their limit; what does not fit waits in the server


@dataclass(frozen=True)
class Seat:
    """A place in the fleet: how to speak to the server, and how to start it where it is this run's own."""

    client: Client
    launcher: Launcher | None
    log: Path


class FleetEngine:
    """Implements `protocols.Generator` and `protocols.ServerPool`."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        background: BackgroundLoop,
        patience: Patience,
        request_seconds: float,
        max_restarts: int,
        vocab_size: int,
        max_tokens_in_flight: int | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Lost attempts by cause, and restarts, since the last `take_counts`."""
        self._background, self._request_seconds, self._vocab_size = background, request_seconds, vocab_size
        self._max_tokens_in_flight, self._tell = max_tokens_in_flight, tell
        self._changed = threading.Condition()
        self._watchers: list[asyncio.Task[None]] = []
        self._members = [
            Member(seat.client, seat.launcher, seat.log, patience, max_restarts, self._on_change) for seat in seats
        ]
        self._admission = Admission(self._members)

    @property
    def version(self) -> int:
        """Of the servers that serve; -1 where none does."""
        return min((member.version for member in self._members if member.state is State.HEALTHY), default=-1)

    def start(self) -> None:
        """Returns when every server answers. Raises EngineError, with everything stopped, where one does not."""
        try:
            self._background.wait(self._start())
        except BaseException:
            self.close()
            raise

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """See `protocols.Generator`. Each completion is a request of its own, lost and repeated by itself."""
        self._check(request)
        return await self._background.run(self._generate(request))

    def ask_each(self, request: GenerationRequest) -> dict[str, Completion]:
        """One completion of every server that serves, by its name; one that does not answer is suspect and left out.

        Raises EngineError for an answer that is none.
        """
        return self._background.wait(self._ask_each(request))

    def updatable(self) -> Sequence[UpdatableServer]:
        """See `protocols.ServerPool`; waits where every server is still on its way back."""
        with self._changed:
            while True:
                found = [member.client.updates for member in self._members if member.state in USABLE]
                if found:
                    return found
                if all(member.state is State.GONE for member in self._members):
                    raise EngineError(f"none of the {len(self._members)} servers is left")
                self._changed.wait()

    def set_aside(self) -> Sequence[UpdatableServer]:
        return self._background.wait(self._set_aside())

    def updated(self, servers: Sequence[UpdatableServer], version: int) -> None:
        names = {server.name for server in servers}
        self._background.wait(self._updated(names, version))

    def lost(self, server: UpdatableServer, error: Exception) -> None:
        self._background.wait(self._lost(server.name, str(error)))

    def take_counts(self) -> dict[str, float]:
        """`engine/lost/<cause>`: attempts without an answer; `engine/restarts`; how many servers serve now."""
        counts, self.counts = self.counts, Counter()
        metrics = {f"engine/{name}": float(counts[name]) for name in sorted({*counts, "restarts", "lost"})}
        metrics["engine/servers"] = float(sum(member.state is State.HEALTHY for member in self._members))
        return metrics

    def describe(self) -> str:
        return ", ".join(dict.fromkeys(member.client.describe() for member in self._members))

    def close(self) -> None:
        """Stops the servers that this run started; ends the engine's thread. Others serve on."""
        for member in self._members:
            if member.is_attached and member.state is State.RELEASED:
                try:
                    member.client.updates.give_back()
                except (ServerGone, ServerRefused) as error:
                    self._tell(f"{member.name} is left without its memory; start it again: {error}")
        self._background.wait(self._close())
        self._background.close()

    async def _start(self) -> None:
        try:
            async with asyncio.TaskGroup() as starting:
                for member in self._members:
                    starting.create_task(self._start_one(member))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._watchers = [asyncio.create_task(member.watch()) for member in self._members]

    async def _start_one(self, member: Member) -> None:
        try:
            await member.start()
            cache = await member.client.capacity(INFO_SECONDS)
        except (StartError, ServerGone, ServerRefused) as error:
            raise EngineError(f"{member.name} cannot be used: {error}") from None
        member.capacity = self._max_tokens_in_flight or CACHES_IN_FLIGHT * cache

    async def _generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._complete(request, i)) for i in range(request.num_completions)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return tuple(task.result() for task in tasks)

    async def _ask_each(self, request: GenerationRequest) -> dict[str, Completion]:
        answers: dict[str, Completion] = {}

        async def ask(member: Member) -> None:
            try:
                answers[member.name] = await member.client.generate(request, 0, self._request_seconds)
            except ServerGone as error:
                member.suspect(str(error))
            except (ServerRefused, BadAnswer) as error:
                raise EngineError(f"a server that was just updated gave no answer: {error}") from None

        await asyncio.gather(*(ask(member) for member in self._members if member.state is State.HEALTHY))
        return answers

    async def _complete(self, request: GenerationRequest, index: int) -> Completion:
        reasons: list[str] = []
        for _ in range(MAX_ATTEMPTS):
            member = await self._admission.enter(request)
            try:
                with self._counted(member, reasons):
                    completion = await member.client.generate(request, index, self._request_seconds)
                    self._check_answer(completion, member)
                    return completion
            finally:
                self._admission.leave(member, request)
        raise GenerationFailed(f"{MAX_ATTEMPTS} attempts failed: {'; '.join(reasons)}")

    @contextlib.contextmanager
    def _counted(self, member: Member, reasons: list[str]) -> Iterator[None]:
        """Around one attempt: what can be tried again is counted and noted, the rest is raised."""
        try:
            yield
            return
        except ServerGone as error:
            cause, reason = "deadline" if error.late else "no_answer", str(error)
            member.suspect(reason)
        except BadAnswer as error:
            cause, reason = "bad_answer", str(error)
        except ServerRefused as error:
            if error.status < FIRST_SERVER_ERROR:
                raise GenerationFailed(str(error)) from None
            cause, reason = "server_error", str(error)
        reasons.append(reason)
        self.counts["lost"] += 1
        self.counts[f"lost/{cause}"] += 1

    def _check_answer(self, completion: Completion, member: Member) -> None:
        if completion.finish_reason == "abort":
            raise BadAnswer(f"{member.name}: it broke the completion off")
        written = {span.version for span in completion.spans}
        if written != {member.version}:
            member.lose(f"wrote tokens by version {sorted(written)}, it was given {member.version}")
            raise BadAnswer(f"{member.name}: tokens by version {sorted(written)}, not {member.version}")

    def _check(self, request: GenerationRequest) -> None:
        """An id outside the vocabulary ends a server, so none ever leaves."""
        wrong = [i for i in request.prompt_ids if not 0 <= i < self._vocab_size]
        if wrong or not request.prompt_ids:
            found = f"token {wrong[0]} is outside the vocabulary of {self._vocab_size}" if wrong else "is empty"
            raise ValueError(f"prompt_ids: {found}")

    async def _updated(self, names: set[str], version: int) -> None:
        self._admission.forget_groups()
        for member in self._members:
            if member.name in names:
                member.serve(version)
            elif member.state in (State.HEALTHY, State.SUSPECT):
                member.lose(f"has no weights of version {version}")

    async def _set_aside(self) -> Sequence[UpdatableServer]:
        found = [member for member in self._members if member.state in USABLE]
        for member in found:
            member.set_aside()
        return [member.client.updates for member in found]

    async def _lost(self, name: str, reason: str) -> None:
        for member in self._members:
            if member.name == name:
                member.lose(reason)

    def _on_change(self, member: Member, reason: str) -> None:
        if member.state is State.RESTARTING:
            self.counts["restarts"] += 1
        if member.state not in (State.HEALTHY, State.RELEASED) or reason == "answers again":
            self._tell(f"{member.name} is {member.state.value}: {reason}")
        with self._changed:
            self._changed.notify_all()
        self._admission.dispatch()

    async def _close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(member.stop() for member in self._members))
        await asyncio.gather(*(member.client.close() for member in self._members))
