"""Coroutines side by side: all of their results, or the first error with the others cancelled; and giving one up."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from megatron_urpo.protocols import Abandoned

T = TypeVar("T")

LOOK_SECONDS = 0.1


async def run_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in the order given. The first error cancels the rest and is raised as itself, not inside a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in started]


async def run_unless(stopping: Callable[[], bool], coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result; cancels it and raises Abandoned when `stopping` says so, looked at every LOOK_SECONDS.

    A signal's handler only sets a flag: an error raised in the middle of anything would leave engines half way.
    """
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        await asyncio.wait((task,), timeout=LOOK_SECONDS)
        if not task.done() and stopping():
            task.cancel()
            await asyncio.wait((task,))
            raise Abandoned("told to stop")
    return task.result()
