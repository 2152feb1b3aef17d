"""Groups without signal are replaced by the next prompts of their task, within the bound."""

from collections.abc import Sequence

import pytest

from megatron_urpo.config.data import Phase
from megatron_urpo.config.schema import RolloutConfig
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.loop.resample import collect_step
from megatron_urpo.rollout.collect import Rollout, slots
from megatron_urpo.types import Completion, Group, InstructionPrompt, Message, Prompt, ReasoningPrompt, VersionSpan

USER = (Message("user", "?"),)
SPAN = (VersionSpan(0, 0, 1),)


def make_stream() -> PromptStream:
    prompts: list[Prompt] = [ReasoningPrompt(f"r{i}", USER, ("1",)) for i in range(20)]
    prompts += [InstructionPrompt(f"i{i}", USER) for i in range(20)]
    return PromptStream(prompts, [Phase(mix={"reasoning": 1, "instruction": 1})], 4, 0)


def group(prompt: Prompt, rewards: Sequence[float | None], dropped: str | None = None) -> Group:
    completions = tuple(Completion((2,), (-1.0,), "stop", SPAN) for _ in rewards)
    count = len(rewards)
    return Group(prompt, (1,), completions, ("",) * count, tuple(rewards), ("",) * count, dropped=dropped)


class Collector:
    """Gives the n-th prompt of each round `rewards[round][n]`, and remembers what it was asked."""

    def __init__(self, *rewards: Sequence[Sequence[float | None]]) -> None:
        self.rewards = rewards
        self.asked: list[list[Prompt]] = []
        self.earlier: list[list[Prompt]] = []

    def __call__(self, prompts: Sequence[Prompt], step: int, earlier: Sequence[Prompt]) -> Rollout:
        rewards = self.rewards[len(self.asked)]
        self.asked.append(list(prompts))
        self.earlier.append(list(earlier))
        groups = [
            group(prompt, row, "verdict_no_scores" if None in row else None)
            for prompt, row in zip(prompts, rewards, strict=True)
        ]
        return Rollout(tuple(groups), {"rollout": 1.0, "judge": 0.5, "verify": 0.0})


SIGNAL, FLAT, MASKED = (1.0, 0.0), (1.0, 1.0), (None, None)


def test_flat_groups_are_replaced_by_prompts_of_their_task() -> None:
    collector = Collector([FLAT, SIGNAL, SIGNAL, FLAT], [SIGNAL, FLAT], [SIGNAL])
    rollout = collect_step(RolloutConfig(resample_rounds=5), make_stream(), collector, 0)
    first, second, third = collector.asked
    assert [prompt.task for prompt in second] == [first[0].task, first[3].task]
    assert [prompt.task for prompt in third] == [second[1].task]
    assert collector.earlier == [[], first, first + second]
    assert [group.prompt for group in rollout.groups] == first + second + third
    assert len({prompt.id for prompt in first + second + third}) == 7
    assert rollout.seconds == {"rollout": 3.0, "judge": 1.5, "verify": 0.0}


@pytest.mark.parametrize(("rounds", "expected"), [(0, 1), (1, 2), (2, 3)])
def test_the_bound_holds(rounds: int, expected: int) -> None:
    collector = Collector([FLAT] * 4, [FLAT] * 4, [FLAT] * 4)
    collect_step(RolloutConfig(resample_rounds=rounds), make_stream(), collector, 0)
    assert len(collector.asked) == expected


def test_a_masked_group_is_not_one_without_signal() -> None:
    collector = Collector([MASKED, SIGNAL, SIGNAL, SIGNAL])
    collect_step(RolloutConfig(resample_rounds=3), make_stream(), collector, 0)
    assert len(collector.asked) == 1


def test_replacements_leave_the_mixture_alone_and_resume() -> None:
    """The next step has its exact shares, and a stream resumed after a replacement goes on the same."""
    stream, resumed = make_stream(), make_stream()
    stream.next_batch(0)
    stream.replacements(["reasoning"] * 3)
    resumed.load_state(stream.state())
    batch = stream.next_batch(1)
    assert [prompt.task for prompt in batch].count("reasoning") == 2
    assert [prompt.id for prompt in resumed.next_batch(1)] == [prompt.id for prompt in batch]


def test_a_prompt_that_comes_again_in_a_step_is_sampled_anew() -> None:
    prompt = ReasoningPrompt("r", USER, ("1",))
    assert [slot.repeat for slot in slots([prompt, prompt], earlier=[prompt])] == [1, 2]
