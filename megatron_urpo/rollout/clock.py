"""How long each kind of work kept at least one request in flight."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Clock:
    """Wall-clock seconds by kind of work. Kinds overlap: two that wait at the same time both count it in full."""

    def __init__(self, kinds: Sequence[str], now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(kinds, 0.0)
        self._in_flight = dict.fromkeys(kinds, 0)
        self._started = dict.fromkeys(kinds, 0.0)
        self._now = now

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Around one request; any number may be open at once."""
        if self._in_flight[kind] == 0:
            self._started[kind] = self._now()
        self._in_flight[kind] += 1
        try:
            yield
        finally:
            self._in_flight[kind] -= 1
            if self._in_flight[kind] == 0:
                self.seconds[kind] += self._now() - self._started[kind]
