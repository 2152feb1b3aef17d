"""Time and peak memory of a call, on a GPU or not."""

import time
from collections.abc import Callable
from statistics import median

import torch


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object], warm_up: int, runs: int) -> tuple[float, float, float]:
    """(median, smallest, largest) seconds of `runs` calls after `warm_up` more."""
    seconds = []
    for index in range(warm_up + runs):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        if index >= warm_up:
            seconds.append(time.perf_counter() - start)
    return median(seconds), min(seconds), max(seconds)


def peak_mib(call: Callable[[], object]) -> float | None:
    """MiB that tensors of `call` took at most, above those from before; None without a GPU."""
    if not torch.cuda.is_available():
        call()
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
