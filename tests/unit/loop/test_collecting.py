"""A batch ahead that is told to stop, saved, and taken by the run that goes on."""

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from megatron_urpo.checkpoints.state import Ahead
from megatron_urpo.config.data import Phase
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.loop.collecting import InStep, OneAhead
from megatron_urpo.loop.rank0 import NoRollout, Rank0
from megatron_urpo.policy.policy import Policy
from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.types import Group, Message, Prompt, ReasoningPrompt
from tests.support.rollout import make_config

SECONDS = {"rollout": 0.0, "judge": 0.0, "verify": 0.0}


def make_stream() -> PromptStream:
    prompts: list[Prompt] = [ReasoningPrompt(f"r{i}", (Message("user", "?"),), ("1",)) for i in range(40)]
    return PromptStream(prompts, [Phase(mix={"reasoning": 1})], 4, 0)


class ScriptedRank0:
    """Answers each batch with its prompts, until it is told to stop; `asked` are (step, version, ids)."""

    def __init__(self, num_steps: int = 9) -> None:
        self.config = make_config(rollout={"resample_rounds": 0}).model_copy(update={"num_steps": num_steps})
        self.asked: list[tuple[int, int | None, list[str]]] = []
        self.stop = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def collect(
        self, prompts: Sequence[Prompt], step: int, earlier: Sequence[Prompt] = (), version: int | None = None
    ) -> Rollout | NoRollout:
        self.asked.append((step, version, [prompt.id for prompt in prompts]))
        self.may_answer.wait(30)
        if self.stop:
            return NoRollout.ABANDONED
        return Rollout(tuple(Group(prompt, (step,), (), (), (), ()) for prompt in prompts), SECONDS)


def make(kind: type[InStep], rank0: ScriptedRank0, stream: PromptStream, *more: Any) -> Any:
    def from_rank0(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    policy = SimpleNamespace(parallel=SimpleNamespace(rank=0, from_rank0=from_rank0))
    return kind(cast(Rank0, rank0), cast(Policy, policy), stream, *more)


def ids(rollout: Rollout) -> list[str]:
    return [group.prompt.id for group in rollout.groups]


def test_an_abandoned_step_leaves_the_stream_where_it_was() -> None:
    for kind in (InStep, OneAhead):
        rank0, stream = ScriptedRank0(), make_stream()
        batches = make(kind, rank0, stream)
        before = stream.state()
        rank0.stop = True
        assert batches.take(0) is None
        assert batches.position() == (before, None)
        assert stream.state() == before


def test_a_batch_ahead_is_saved_and_taken_by_the_next_run() -> None:
    rank0, stream = ScriptedRank0(), make_stream()
    batches = make(OneAhead, rank0, stream)
    batches.take(0)
    after_two_batches = stream.state()
    first = batches.take(1)
    batches.settle()
    position, ahead = batches.position()
    assert isinstance(ahead, Ahead)
    assert ids(ahead.rollout) == rank0.asked[-1][2]
    assert rank0.asked[-1][:2] == (2, 1)  # written by the weights that step 1 starts from
    assert position == after_two_batches  # a run that cannot use the batch ahead draws it again
    assert ahead.stream != position

    again, resumed = ScriptedRank0(), make_stream()
    resumed.load_state(position)
    later = make(OneAhead, again, resumed, ahead)
    assert later.take(2) == ahead.rollout
    unbroken = batches.take(2)
    for run in (later, batches):
        run.settle()
    assert again.asked[0][:2] == (3, 2)  # the one after it is collected now
    assert ids(unbroken) == ids(ahead.rollout)
    assert rank0.asked[-1] == again.asked[0]  # and both runs go on with the same prompts
    assert not set(ids(first)) & set(ids(ahead.rollout))


def test_without_overlap_the_saved_batch_is_drawn_again() -> None:
    rank0, stream = ScriptedRank0(), make_stream()
    batches = make(OneAhead, rank0, stream)
    batches.take(0)
    batches.settle()
    position, ahead = batches.position()
    assert ahead is not None
    resumed = make_stream()
    resumed.load_state(position)
    assert ids(make(InStep, ScriptedRank0(), resumed).take(1)) == ids(ahead.rollout)


def test_a_batch_ahead_that_was_given_up_is_drawn_again() -> None:
    rank0, stream = ScriptedRank0(), make_stream()
    batches = make(OneAhead, rank0, stream)
    rank0.may_answer.set()
    batches.take(0)
    batches.settle()
    rank0.may_answer.clear()
    batches.take(1)  # the batch of step 2 is being written
    rank0.stop = True
    rank0.may_answer.set()
    batches.settle()
    position, ahead = batches.position()
    assert ahead is None
    resumed = make_stream()
    resumed.load_state(position)
    assert [prompt.id for prompt in resumed.next_batch(2)] == rank0.asked[-1][2]
    assert batches.take(2) is None
    assert stream.state() == position
