import re
import sys

import pytest

from megatron_urpo.evaluation.held_out import evaluate
from megatron_urpo.types import GenerationRequest, InstructionPrompt, Message, PreferencePrompt, Prompt, ReasoningPrompt
from tests.support.rollout import CharacterTokenizer, ScriptedGenerator, ScriptedVerifier, make_config

USER = (Message("user", "Why?"),)
SUM = ReasoningPrompt("r", (Message("user", "2 + 2"),), ("4",))
PAIR = PreferencePrompt("p", USER, ("good", "bad"), (1.0, 0.0))
OPEN = InstructionPrompt("i", USER)

# Quality is the number in the answer.
SCORER = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"quality": float(json.loads(line)["completion"].split()[1])}))
"""


def run(script, prompts: list[Prompt], version: int = 0, **sections) -> tuple[dict[str, float], list]:
    engine = ScriptedGenerator(script, version)
    verifier = ScriptedVerifier({"hang": "verifier_error"})
    return evaluate(engine, CharacterTokenizer(), verifier, prompts, make_config(**sections)), engine.requests


def test_reasoning_accuracy() -> None:
    def script(prompt: str, request: GenerationRequest, i: int) -> str:
        return "4" if request.temperature == 0 else ["4", "5", "hang", "5"][i]

    metrics, requests = run(script, [SUM], evaluation={"completions_per_prompt": 4})
    assert metrics == {
        "eval/reasoning/accuracy": pytest.approx(1 / 3),
        "eval/reasoning/greedy_accuracy": 1.0,
        "eval/dropped_prompts": 0.0,
    }
    assert [(request.num_completions, request.temperature) for request in requests] == [(4, 1.0), (1, 0.0)]


def test_preference_tau_counts_an_unreadable_verdict_as_zero() -> None:
    def script(prompt: str, request: GenerationRequest, i: int) -> str:
        right = "\\boxed{9, 1}" if prompt.index("good") < prompt.index("bad") else "\\boxed{1, 9}"
        return "?" if request.temperature == 0 or i else right

    metrics, _ = run(script, [PAIR])
    assert metrics["eval/preference/tau"] == 0.5
    assert metrics["eval/preference/verdict_ok_fraction"] == 0.5
    assert metrics["eval/preference/greedy_tau"] == 0.0
    assert not any("reasoning" in name or "instruction" in name for name in metrics)


def judge_by(score: dict[str, int], prompt: str) -> str:
    shown = re.findall(r"\[The Begin of Response \d+\]answer (\d)", prompt)
    return "\\boxed{" + ", ".join(str(score[number]) for number in shown) + "}"


def test_instruction_quality_and_self_scores() -> None:
    flat = InstructionPrompt("flat", (Message("user", "flat?"),))
    mute = InstructionPrompt("mute", (Message("user", "mute?"),))

    def script(prompt: str, request: GenerationRequest, i: int) -> str:
        if "[The Begin of Response 1]" in prompt:
            # Order 1 < 3 < 2 against the quality 1 < 2 < 3: one of three pairs is wrong.
            return "?" if "mute" in prompt else judge_by({"1": 1, "2": 8, "3": 6}, prompt)
        return "answer 2" if "flat" in prompt or request.temperature == 0 else f"answer {i + 1}"

    metrics, requests = run(
        script,
        [OPEN, flat, mute],
        rollout={"completions_per_prompt": 3},
        evaluation={"scorer": [sys.executable, "-c", SCORER]},
    )
    assert metrics["eval/instruction/quality"] == 2.0
    assert metrics["eval/instruction/greedy_quality"] == 2.0
    assert metrics["eval/instruction/self_score_tau"] == pytest.approx(1 / 3)  # `flat` and `mute` are left out
    assert metrics["eval/instruction/self_score"] == (1 + 8 + 6 + 8 * 3) / 6
    assert metrics["eval/instruction/verdict_ok_fraction"] == pytest.approx(2 / 3)
    assert {request.num_completions for request in requests if request.order[0] == 1} == {1, 3}


def test_without_a_scorer_and_without_greedy() -> None:
    def script(prompt: str, request: GenerationRequest, i: int) -> str:
        return judge_by({"1": 1, "2": 2}, prompt) if "Response 1]" in prompt else f"answer {i + 1}"

    metrics, requests = run(script, [OPEN], evaluation={"greedy": False})
    assert metrics == {
        "eval/instruction/self_score": 1.5,
        "eval/instruction/verdict_ok_fraction": 1.0,
        "eval/dropped_prompts": 0.0,
    }
    assert len(requests) == 2


def test_seeds_do_not_depend_on_the_version_but_on_the_seed_of_the_config() -> None:
    def seeds(version: int) -> list[int]:
        return [request.seed for request in run(lambda *_: "4", [SUM, PAIR], version)[1]]

    assert seeds(0) == seeds(17)


def test_prompts_that_do_not_fit_are_counted() -> None:
    metrics, _ = run(lambda *_: "4", [SUM, OPEN], rollout={"max_prompt_tokens": 3})
    assert metrics == {"eval/dropped_prompts": 2.0}
