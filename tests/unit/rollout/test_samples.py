import math

from hypothesis import given
from hypothesis import strategies as st

from megatron_urpo.rollout.samples import build_samples
from megatron_urpo.types import Completion, Group, InstructionPrompt, Message, ReasoningPrompt, VersionSpan


def group(rewards: list[float | None], outcomes: list[str] | None = None, dropped: str | None = None) -> Group:
    completions = tuple(Completion((7, 8, i), (-1.0, -2.0, -3.0), "stop", (VersionSpan(0, 0, 3),)) for i in range(9))
    count = len(rewards)
    return Group(
        prompt=ReasoningPrompt("r", (Message("user", "?"),), ("4",)),
        prompt_ids=(1, 2),
        completions=completions[:count],
        texts=("",) * count,
        rewards=tuple(rewards),
        outcomes=tuple(outcomes or ["correct"] * count),
        dropped=dropped,
    )


def test_advantages_by_hand() -> None:
    batch = build_samples([group([1.0, 0.0])])
    # Mean 0.5, population standard deviation 0.5.
    assert [round(sample.advantage, 4) for sample in batch.samples] == [1.0, -1.0]
    first = batch.samples[0]
    assert (first.group, first.task, first.prompt_ids, first.completion_ids) == (0, "reasoning", (1, 2), (7, 8, 0))
    assert first.rollout_logprobs == (-1.0, -2.0, -3.0)


def test_who_is_left_out_and_why() -> None:
    masked = group([None, None], ["masked_no_scores"] * 2, dropped="verdict_no_scores")
    groups = [
        group([1.0, 1.0]),
        masked,
        group([0.0, 1.0, None], ["wrong", "correct", "verifier_error"]),
        group([1.0, None], ["correct", "verifier_error"]),
        group([], dropped="prompt_too_long"),
    ]
    batch = build_samples(groups)
    assert batch.causes == ("no_signal", "verdict_no_scores", None, "no_signal", "prompt_too_long")
    assert batch.num_dropped == {"no_signal": 2, "verdict_no_scores": 1, "prompt_too_long": 1}
    assert batch.num_masked == {"verifier_error": 1}
    assert [(sample.group, sample.completion_ids[-1]) for sample in batch.samples] == [(2, 0), (2, 1)]
    assert [len(values) for values in batch.advantages] == [2, 2, 3, 2, 0]
    assert batch.advantages[2][2] is None
    assert batch.advantages[0] == (None, None)


def test_nothing_at_all() -> None:
    batch = build_samples([])
    assert (batch.samples, batch.causes, batch.num_dropped) == ((), (), {})


@given(st.lists(st.lists(st.none() | st.integers(0, 3).map(float), min_size=1, max_size=8), max_size=6))
def test_advantages_of_a_trained_group_sum_to_zero(rewards: list[list[float | None]]) -> None:
    batch = build_samples([group(values) for values in rewards])
    for g, values in enumerate(rewards):
        known = [value for value in values if value is not None]
        members = [sample.advantage for sample in batch.samples if sample.group == g]
        if len(set(known)) < 2:
            assert batch.causes[g] == "no_signal"
            assert members == []
        else:
            assert len(members) == len(known)
            assert math.isclose(sum(members), 0, abs_tol=1e-6)


def test_masked_instruction_prompts_keep_their_place() -> None:
    prompt = InstructionPrompt("i", (Message("user", "?"),))
    masked = Group(prompt, (1,), (), (), (), (), dropped="scoring_prompt_too_long")
    batch = build_samples([masked, group([0.0, 2.0])])
    assert {sample.group for sample in batch.samples} == {1}
