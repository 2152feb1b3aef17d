import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from megatron_urpo.metrics import DROP_CAUSES, correlation, final_verdicts, rollout_metrics
from megatron_urpo.types import (
    Completion,
    FinishReason,
    Group,
    InstructionPrompt,
    Judgement,
    Message,
    PreferencePrompt,
    ReasoningPrompt,
    ScoringPrompt,
    Verdict,
    VersionSpan,
)
from tests.support.rollout import make_config

USER = (Message("user", "?"),)


def completion(length: int = 4, finish_reason: FinishReason = "stop") -> Completion:
    return Completion((7,) * length, (-1.0,) * length, finish_reason, (VersionSpan(0, 0, length),))


def judgement(verdict: Verdict, permutation: tuple[int, ...], num_cut: int = 0) -> Judgement:
    return Judgement(ScoringPrompt((1,), permutation, num_cut), completion(3), "", verdict)


def ok(*scores: float) -> Verdict:
    return Verdict("ok", scores)


REASONING = Group(
    prompt=ReasoningPrompt("r", USER, ("4",)),
    prompt_ids=(1,),
    completions=(completion(2), completion(4), completion(6, "length"), completion(8)),
    texts=("4", "5", " ", "x"),
    rewards=(1.0, 0.0, 0.0, None),
    outcomes=("correct", "wrong", "no_answer", "verifier_error"),
)
PREFERENCE = Group(
    prompt=PreferencePrompt("p", USER, ("a", "bb", "ccc"), (1.0, 2.0, 3.0)),
    prompt_ids=(1,),
    completions=(completion(),) * 2,
    texts=("", "x"),
    rewards=(1.0, -1.0),
    outcomes=("ok", "no_scores"),
    # Shown as ccc, a, bb with scores 6, 2, 4: position 0, 1, 2 against 6, 2, 4 correlates at -0.5; length at +1.
    judgements=(judgement(ok(2.0, 4.0, 6.0), (2, 0, 1)), judgement(Verdict("no_scores"), (2, 0, 1))),
)
INSTRUCTION = Group(
    prompt=InstructionPrompt("i", USER),
    prompt_ids=(1,),
    completions=(completion(5),) * 2,
    texts=("aa", "b"),
    rewards=(1.0, 5.0),
    outcomes=("scored",) * 2,
    judgements=(judgement(Verdict("truncated"), (0, 1), num_cut=2), judgement(ok(1.0, 5.0), (0, 1))),
)


def test_numbers_by_hand() -> None:
    metrics = rollout_metrics([REASONING, PREFERENCE, INSTRUCTION], {"no_signal": 2}, make_config())
    expected = {
        "reward/mean/reasoning": 1 / 3,
        "reward/std/reasoning": math.sqrt(2) / 3,
        "reward/mean/preference": 0.0,
        "reward/std/preference": 1.0,
        "reward/mean/instruction": 3.0,
        "reasoning/correct_fraction": 0.25,
        "reasoning/wrong_fraction": 0.25,
        "reasoning/no_answer_fraction": 0.25,
        "reasoning/verifier_error_fraction": 0.25,
        "referee/verdict_ok_fraction": 0.5,
        "referee/verdict/ok": 2,
        "referee/verdict/no_scores": 1,
        "referee/verdict/truncated": 1,
        "referee/verdict/out_of_range": 0,
        "referee/position_bias": (-0.5 + 1.0) / 2,
        "referee/length_correlation": (1.0 - 1.0) / 2,
        "referee/reasks": 1,
        "referee/responses_cut": 2,
        "groups/dropped/no_signal": 2,
        "groups/dropped/prompt_too_long": 0,
        "groups/total": 3,
        "completions/length_mean/reasoning": 5.0,
        "completions/truncated_fraction/reasoning": 0.25,
        "completions/truncated_fraction/instruction": 0.0,
        "completions/empty": 2,
        "tokens/generated": (2 + 4 + 6 + 8) + 2 * 4 + (2 * 5 + 2 * 3),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "referee/vote_agreement" not in metrics


def test_names_do_not_depend_on_what_happened() -> None:
    config = make_config(data={"curriculum": [{"mix": {"reasoning": 1}}]})
    empty = rollout_metrics([], {}, config)
    full = rollout_metrics([REASONING], {"no_signal": 1}, config)
    means = {name for name in full if name.rpartition("/")[0] in {"reward/mean", "reward/std"} or "fraction" in name}
    assert set(full) - set(empty) == means | {"completions/length_mean/reasoning"}
    assert not any("instruction" in name or "preference" in name for name in full)
    assert {f"groups/dropped/{cause}" for cause in DROP_CAUSES} <= set(empty)


def test_an_unforeseen_cause_is_not_lost() -> None:
    assert rollout_metrics([], {"moon": 3}, make_config())["groups/dropped/moon"] == 3


def test_vote_agreement() -> None:
    votes = (judgement(ok(1.0, 2.0, 3.0), (0, 1, 2)), judgement(ok(1.0, 3.0, 2.0), (0, 1, 2)))
    group = Group(INSTRUCTION.prompt, (1,), (completion(),) * 3, ("a",) * 3, (1.0,) * 3, ("scored",) * 3, votes)
    metrics = rollout_metrics([group], {}, make_config(referee={"votes": 2}))
    assert metrics["referee/vote_agreement"] == pytest.approx(1 / 3)
    assert metrics["referee/reasks"] == 0


def test_final_verdicts() -> None:
    bad, good = Verdict("no_scores"), ok(1.0, 2.0)
    asks = [judgement(verdict, (0, 1)) for verdict in (bad, good, good, bad, bad)]
    assert final_verdicts(asks) == [good, good, bad]


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=20))
def test_correlation_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    xs, ys = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        assert correlation(xs, ys) is None
    else:
        assert correlation(xs, ys) == pytest.approx(pearsonr(xs, ys).statistic, abs=1e-9)


def test_position_bias_tells_a_biased_referee_from_a_fair_one() -> None:
    rng = random.Random(0)
    fair, biased = [], []
    for _ in range(300):
        permutation = tuple(rng.sample(range(4), 4))
        values = [float(rng.randrange(10)) for _ in range(4)]
        shown_at = [float(permutation.index(candidate)) for candidate in range(4)]
        fair.append(judgement(ok(*values), permutation))
        biased.append(judgement(ok(*(v + 3 * p for v, p in zip(values, shown_at, strict=True))), permutation))

    def bias(judgements: list[Judgement]) -> float:
        prompt = PreferencePrompt("p", USER, ("a", "b", "c", "d"), (1.0, 2.0, 3.0, 4.0))
        group = Group(prompt, (1,), (), (), (), (), tuple(judgements))
        return rollout_metrics([group], {}, make_config())["referee/position_bias"]

    assert abs(bias(fair)) < 0.1
    assert bias(biased) > 0.5
