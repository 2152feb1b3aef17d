"""Groups go through JSON and back unchanged: every class, every digit, every character."""

import json
import math

import pytest

from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.rollout.saved import rollout_from_json, rollout_to_json
from megatron_urpo.types import (
    Completion,
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

USER = (Message("user", "naïve \u2028 \U0001f600 \x00 </script>"),)
COMPLETION = Completion((1, 2), (-0.1, -1 / 3), "stop", (VersionSpan(3, 0, 1), VersionSpan(4, 1, 2)))
JUDGEMENT = Judgement(ScoringPrompt((5, 6), (1, 0), 1), COMPLETION, "\\boxed{1,2}", Verdict("ok", (0.1 + 0.2, 2.0)))


def make_rollout() -> Rollout:
    prompts = (
        ReasoningPrompt("r", USER, ("1", "one"), "source"),
        PreferencePrompt("p", USER, ("a", "b"), (1.0, -math.pi)),
        InstructionPrompt("i", USER),
    )
    groups = [
        Group(p, (7, 8), (COMPLETION, COMPLETION), ("x", "y"), (1.0, None), ("scored", "masked"), (JUDGEMENT,), "no")
        for p in prompts
    ]
    return Rollout((*groups, Group(prompts[0], (), (), (), (), ())), {"rollout": 1.5, "judge": 0.0}, ("one failed",))


def test_there_and_back() -> None:
    rollout = make_rollout()
    text = json.dumps(rollout_to_json(rollout))
    assert rollout_from_json(json.loads(text)) == rollout


def test_what_is_none_is_refused() -> None:
    for damage in ({"groups": [{}]}, {"groups": [{"prompt": {"task": "cooking"}}]}, {"seconds": {"rollout": "x"}}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            rollout_from_json({**rollout_to_json(make_rollout()), **damage})
