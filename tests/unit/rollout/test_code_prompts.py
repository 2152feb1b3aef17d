# ruff: noqa: E501 (programs and hostile texts read better on their own lines)
"""Prompts with tests through a whole collection: real sandboxes, a scripted policy; rewards, metrics, transcript."""

import contextlib
import json
from pathlib import Path

import pytest

from megatron_urpo.config.reward import VerifierConfig
from megatron_urpo.data.table import PromptTable
from megatron_urpo.metrics import rollout_metrics
from megatron_urpo.preflight.verifying import check_verifier
from megatron_urpo.reporting.report.groups import page_group
from megatron_urpo.reporting.transcripts import write_transcript
from megatron_urpo.reward.verifiable.verifier import RuleVerifier
from megatron_urpo.rollout import build_samples, collect
from megatron_urpo.types import FunctionalTest, Message, ReasoningPrompt, StdinTests
from tests.support.programs import block, needs_namespaces
from tests.support.rollout import CharacterTokenizer, ScriptedGenerator, make_config

pytestmark = needs_namespaces

ADD = FunctionalTest("", "def check(candidate):\n    assert candidate(2, 3) == 5", "add")
PROMPTS = [
    ReasoningPrompt("functional", (Message("user", "write add"),), (), "store", ADD),
    ReasoningPrompt("stdin", (Message("user", "double it"),), (), "store", StdinTests(("2",), ("4",))),
    ReasoningPrompt("sum", (Message("user", "2 + 2"),), ("4",)),
]
SAID = {
    "write add": [block("def add(a, b): return a + b"), block("def add(a, b): return 5 if a == 1 else 0"), "add them",
                  block("def add(a, b):\n    while True: pass")],
    "double it": [block("print(2 * int(input()))"), block("print(4, file=open('/tmp/x', 'w'))"), block("1 / 0"), block("print(4)")],
    "2 + 2": [r"\boxed{4}", r"\boxed{5}", "4", r"\boxed{\frac{8}{2}}"],
}  # fmt: skip


def test_programs_are_rewarded_counted_and_written_down(tmp_path: Path) -> None:
    config = make_config(
        rollout={"completions_per_prompt": 4}, data={"train": ["t"], "curriculum": [{"mix": {"reasoning": 1}}], "prompts_per_step": 3},
        verifier={"code": {"timeout_seconds": 1.0}},
    )  # fmt: skip
    engine = ScriptedGenerator(lambda prompt, request, i: next(v for k, v in SAID.items() if k in prompt)[i])
    with contextlib.closing(RuleVerifier(config.verifier)) as verifier:
        rollout = collect(PROMPTS, engine, CharacterTokenizer(), verifier, config, step=0)
    functional, stdin, answers = rollout.groups
    assert functional.rewards == (1.0, 0.0, 0.0, 0.0)
    assert functional.outcomes == ("correct", "wrong", "no_answer", "wrong")
    assert functional.causes == ("", "wrong_output", "", "time_limit")
    assert stdin.rewards == (1.0, 0.0, 0.0, 1.0)
    assert stdin.causes == ("", "wrong_output", "runtime_error", "")
    assert (answers.rewards, answers.causes) == ((1.0, 0.0, 0.0, 1.0), ())
    batch = build_samples(rollout.groups)
    metrics = rollout_metrics(rollout.groups, batch.num_dropped, config)
    assert metrics["reward/mean/reasoning"] == pytest.approx(5 / 12)
    assert metrics["reasoning/correct_fraction"] == pytest.approx(5 / 12)
    assert metrics["reasoning/verifier_error_fraction"] == 0.0
    assert metrics["reasoning/code/passed_fraction"] == pytest.approx(3 / 8)
    assert metrics["reasoning/code/wrong_output_fraction"] == pytest.approx(2 / 8)
    assert metrics["reasoning/code/time_limit_fraction"] == pytest.approx(1 / 8)
    assert metrics["reasoning/code/sandbox_lost_fraction"] == 0.0
    write_transcript(tmp_path / "t.jsonl", rollout.groups, batch.causes, batch.advantages)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [completion["cause"] for completion in rows[0]["completions"]] == list(functional.causes)
    assert rows[0]["prompt"]["tests"]["test_code"] == ADD.test_code
    assert all("cause" not in completion for completion in rows[2]["completions"])
    assert "def check" in page_group(1, rows[0], (0.0, 10.0))["tests"]["text"]


def test_a_store_without_programs_asks_for_no_sandbox() -> None:
    assert check_verifier(VerifierConfig(), PromptTable.of(PROMPTS[2:]).has_code_tests()) is None
    assert check_verifier(VerifierConfig(), PromptTable.of(PROMPTS).has_code_tests()) == "namespaces"
