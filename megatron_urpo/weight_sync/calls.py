"""The same call to several servers at once, each in a thread, and what to do where some fail."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from megatron_urpo.protocols import ServerGone, ServerRefused, UpdatableServer

MAX_SERVERS = 256


class ServersFailed(RuntimeError):
    """`gone` did not answer, `refused` answered that they did not do it; perhaps because others were gone."""

    def __init__(
        self, gone: Sequence[tuple[UpdatableServer, Exception]], refused: Sequence[tuple[UpdatableServer, Exception]]
    ) -> None:
        super().__init__("; ".join(f"{server.name}: {error}" for server, error in (*gone, *refused)))
        self.gone, self.refused = gone, refused


class Calls:
    """Calls that are under way; `wait` for them all."""

    def __init__(self, servers: Sequence[UpdatableServer], futures: Sequence["Future[None]"]) -> None:
        self._servers, self._futures = servers, futures

    def wait(self) -> None:
        """Raises ServersFailed when every server has answered or failed to."""
        gone, refused = [], []
        for server, future in zip(self._servers, self._futures, strict=True):
            try:
                future.result()
            except ServerGone as error:
                gone.append((server, error))
            except ServerRefused as error:
                refused.append((server, error))
        if gone or refused:
            raise ServersFailed(gone, refused)

    def over(self) -> bool:
        """Whether every server has answered, or one has failed to."""
        return self.failed() or all(future.done() for future in self._futures)

    def failed(self) -> bool:
        """Whether `wait` is already certain to raise."""
        return any(future.done() and future.exception() is not None for future in self._futures)

    def on_failure(self, act: Callable[[], None]) -> None:
        """`act()`, in some thread, as soon as a call fails, and once more for each further one."""

        def look(future: "Future[None]") -> None:
            if future.exception() is not None:
                act()

        for future in self._futures:
            future.add_done_callback(look)


def collect(waits: Iterable[Callable[[], None]]) -> None:
    """All of them, to the end. Raises one ServersFailed for all that were raised."""
    failures = []
    for wait in waits:
        try:
            wait()
        except ServersFailed as failed:
            failures.append(failed)
    if failures:
        raise ServersFailed([g for one in failures for g in one.gone], [r for one in failures for r in one.refused])


class Caller:
    """Threads enough to speak to every server at the same time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=MAX_SERVERS, thread_name_prefix="weight-sync")

    def start(self, servers: Sequence[UpdatableServer], call: Callable[[UpdatableServer, int], None]) -> Calls:
        """`call(server, its place)` on each."""
        assert len(servers) <= MAX_SERVERS, "a call that waits for one without a thread would wait for ever"
        futures = [self._threads.submit(partial(call, server, place)) for place, server in enumerate(servers)]
        return Calls(servers, futures)

    def each(self, servers: Sequence[UpdatableServer], call: Callable[[UpdatableServer], None]) -> None:
        """`call(server)` on each, to the end. Raises ServersFailed."""
        self.start(servers, lambda server, place: call(server)).wait()

    def close(self) -> None:
        """Does not wait for calls that a broken-off update left behind: the engine ends them when it closes."""
        self._threads.shutdown(wait=False)
