"""Seeds, the clock, coroutines side by side."""

import asyncio

import pytest

from megatron_urpo.protocols import Abandoned
from megatron_urpo.rollout.clock import Clock
from megatron_urpo.rollout.concurrency import run_all, run_unless
from megatron_urpo.rollout.seeds import derive_seed


def test_seeds_are_63_bits_and_tell_all_parts_apart() -> None:
    seeds = [derive_seed(a, b, c) for a in (0, 1, "1") for b in ("x", "y", "x,") for c in (0, 10)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 3, "prompt", 0, "player", 0) == derive_seed(0, 3, "prompt", 0, "player", 0)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    # A change of this number would change every run that is repeated from its config.
    assert derive_seed(0, "a") == 3241401261717813331


def test_clock_counts_time_with_anything_in_flight_once() -> None:
    time = [0.0]
    clock = Clock(("rollout", "judge"), lambda: time[0])

    def wait(seconds: float) -> None:
        time[0] += seconds

    with clock.measure("rollout"):
        wait(1)
        with clock.measure("rollout"), clock.measure("judge"):
            wait(2)
        wait(4)
    wait(8)

    def fail() -> None:
        with clock.measure("judge"):
            wait(16)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.seconds == {"rollout": 7.0, "judge": 18.0}


def test_run_all_keeps_order_and_unwraps_nested_errors() -> None:
    async def after(turns: int, value: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    async def fail() -> int:
        raise KeyError("inner")

    async def nested() -> int:
        return sum(await run_all([after(1, 1), fail()]))

    assert asyncio.run(run_all(after(3 - i, i) for i in range(3))) == [0, 1, 2]
    with pytest.raises(KeyError, match="inner"):
        asyncio.run(run_all([after(50, 1), nested()]))


def test_run_unless_cancels_and_waits_for_what_is_cancelled() -> None:
    happened: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            happened.append("cleaned up")

    async def answer() -> int:
        return 7

    with pytest.raises(Abandoned):
        asyncio.run(run_unless(lambda: True, work()))
    assert happened == ["cleaned up"]
    assert asyncio.run(run_unless(lambda: False, answer())) == 7
