"""Ctrl-C once and twice, wherever it finds the program."""

import gc
import os
import signal
import time
import weakref

import pytest

from megatron_urpo.loop.signals import EXIT_INTERRUPTED, EXIT_REQUEUE, StopRequest

SECONDS = 20.0  # far above what it takes


class Circle:
    """Freed by the collector, which calls what waits for it."""

    def __init__(self) -> None:
        self.itself = self


def interrupt(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def collect_and_wait() -> None:
    """A signal may come before the collection ends, where there is much to free."""
    gc.collect()
    for _ in range(int(SECONDS / 0.01)):
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_ask_as_often_as_it_likes(number: signal.Signals) -> None:
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop()
    assert stop.exit_code == EXIT_REQUEUE


def test_one_asks_and_a_second_stops_at_once() -> None:
    with StopRequest() as stop:
        interrupt()
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert stop.exit_code == EXIT_INTERRUPTED


def test_a_second_that_meets_a_finalizer_is_not_lost() -> None:
    """Python ignores what is raised there."""
    with StopRequest():
        interrupt()
        circle = Circle()
        watched = weakref.ref(circle, interrupt)
        del circle
        with pytest.raises(KeyboardInterrupt):
            collect_and_wait()
        assert watched() is None


def test_handlers_and_hooks_are_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
