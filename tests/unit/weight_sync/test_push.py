"""All ranks push together, and agree on how it went: ranks here are threads whose export is as collective as gloo's."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import pytest
import torch
from torch import Tensor

from megatron_urpo.protocols import EngineError, PushAgain, RankZeroError
from megatron_urpo.weight_sync.push import push_weights

P = ParamSpec("P")
T = TypeVar("T")
NUM_RANKS = 3
SECONDS = 20.0  # a rank that waits longer waits for one that never comes
NAMES = ("a", "b", "c")


class Meeting:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(NUM_RANKS, timeout=SECONDS)
        self.told: object = None
        self.error: Exception | None = None


class ThreadRanks:
    """Implements `protocols.Ranks`."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting

    def from_rank0(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        meeting = self._meeting
        if self.rank == 0:
            meeting.error = None
            try:
                meeting.told = function(*args, **kwargs)
            except Exception as raised:
                meeting.error = raised
        meeting.barrier.wait()
        told, error = meeting.told, meeting.error
        meeting.barrier.wait()
        if error is not None:
            raise error if self.rank == 0 else RankZeroError(str(error))
        return told  # type: ignore[return-value]


class CollectiveSource:
    """Implements `protocols.WeightSource`: no rank gets past a tensor before all have come to it."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting, self.exports = meeting, 0

    def export(self) -> Iterator[tuple[str, Tensor]]:
        for name in NAMES:
            self._meeting.barrier.wait()
            yield name, torch.zeros(1)
        self.exports += 1


class ScriptedReceiver:
    """Takes `taken` tensors, then raises the next of `errors`, or, where that is None, takes all."""

    def __init__(self, errors: Sequence[Exception | None], taken: int) -> None:
        self._errors, self._taken = list(errors), taken
        self.got: list[str] = []

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        error = self._errors.pop(0)
        self.got = []
        for name, _ in tensors:
            if error is not None and len(self.got) == self._taken:
                raise error
            self.got.append(name)
        if error is not None:
            raise error


def push(receiver: ScriptedReceiver) -> tuple[list[str], list[int]]:
    """How each rank's push ended, and how often each exported to the end."""
    meeting = Meeting()
    sources = [CollectiveSource(meeting) for _ in range(NUM_RANKS)]

    def on(rank: int) -> str:
        try:
            metrics = push_weights(sources[rank], receiver if rank == 0 else None, 5, ThreadRanks(rank, meeting))
        except (EngineError, ValueError, RankZeroError) as error:
            return f"{type(error).__name__}: {error}"
        assert metrics["time/weight_sync"] > 0
        return "done"

    with ThreadPoolExecutor(NUM_RANKS) as threads:
        return list(threads.map(on, range(NUM_RANKS))), [source.exports for source in sources]


def test_every_rank_exports_once() -> None:
    receiver = ScriptedReceiver([None], 0)
    assert push(receiver) == (["done"] * NUM_RANKS, [1] * NUM_RANKS)
    assert receiver.got == list(NAMES)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_every_rank_exports_again_where_a_server_died(taken: int) -> None:
    """Wherever rank 0 broke off, the others' collectives find their partner."""
    receiver = ScriptedReceiver([PushAgain("one"), PushAgain("two"), None], taken)
    assert push(receiver) == (["done"] * NUM_RANKS, [3] * NUM_RANKS)
    assert receiver.got == list(NAMES)


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("error", [EngineError("b: no"), ValueError("shape")])
def test_an_error_reaches_every_rank(error: Exception, taken: int) -> None:
    outcomes, exports = push(ScriptedReceiver([error], taken))
    assert outcomes == [f"{type(error).__name__}: {error}", *[f"RankZeroError: {error}"] * (NUM_RANKS - 1)]
    assert exports == [1] * NUM_RANKS


def test_an_error_after_a_repeat_reaches_every_rank() -> None:
    outcomes, exports = push(ScriptedReceiver([PushAgain("one"), EngineError("none is left")], 1))
    assert outcomes == ["EngineError: none is left", *["RankZeroError: none is left"] * (NUM_RANKS - 1)]
    assert exports == [2] * NUM_RANKS
