"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to save and stop; a second Ctrl-C stops it at once.

A rollout under way is given up, an update is finished: what is saved is the state after the last whole step.
"""

import signal
from types import FrameType, TracebackType

EXIT_REQUEUE = 85
"""Exit code of a run that was told to stop and saved: a scheduler may start it again and it goes on."""
EXIT_INTERRUPTED = 130


class StopRequest:
    """A context in which the signals are caught; outside it they act as before."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
