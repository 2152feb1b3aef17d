"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to save and stop; a second Ctrl-C stops it at once.

A rollout under way is given up, an update is finished: what is saved is the state after the last whole step.
"""

import signal
import sys
import threading
from types import FrameType, TracebackType

EXIT_REQUEUE = 85
"""Exit code of a run that was told to stop and saved: a scheduler may start it again and it goes on."""
EXIT_INTERRUPTED = 130
AGAIN_SECONDS = 0.05


class StopRequest:
    """A context in which the signals are caught; outside it they act as before."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        self._tell_unraisable = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.unraisablehook = self._tell_unraisable
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Whether this process was asked to."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.received == signal.SIGINT else EXIT_REQUEUE

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def _unraisable(self, raised: "sys.UnraisableHookArgs") -> None:
        """A handler may run within a finalizer, out of which Python lets no exception: then it is called once more."""
        if raised.exc_type is KeyboardInterrupt:
            main = threading.main_thread().ident  # which a call to the system may hold up
            threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [main, signal.SIGINT]).start()
        else:
            self._tell_unraisable(raised)
