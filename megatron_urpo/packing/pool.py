"""A function over many items in every core, results in the order of the items, few of either in memory.

Processes are children of a fork server that has this package's modules loaded, so that starting one is cheap and no
thread is forked. They leave when their parent is gone, however it went.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from megatron_urpo.data.errors import DataError

T = TypeVar("T")
_AHEAD = 3  # items in work or waiting for each process
_PRELOAD = ["megatron_urpo.packing.chunks"]


def start_loading() -> None:
    """Starts the fork server, so that it loads its modules while this process loads its own."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def ordered_map(
    processes: int, start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Callable[[Callable[..., T], Iterable[tuple[Any, ...]]], Iterator[T]]]:
    """A `map(function, items)`; each process has called `start(*arguments)` before. With one process: in this one.

    An error of a call, or of the iteration over items, is raised where its result would have come.
    """
    if processes == 1:
        start(*arguments)
        yield lambda function, items: (function(*item) for item in items)
        return
    start_loading()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(processes, context, _start, (start, arguments))
    try:
        yield lambda function, items: _in_order(pool, processes * _AHEAD, function, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, ahead: int, function: Callable[..., T], items: Iterable[tuple[Any, ...]]
) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, *item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "processes: one of them was ended from outside, most often for want of memory; use fewer processes"
        ) from None


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()
    start(*arguments)


def _leave_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
