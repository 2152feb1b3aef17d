"""What goes wrong while a run is under way is counted and named, and the run goes on; without any signal it stops.

The policy is a chain of tokens with known probabilities (`tests/support/world.py`); engine, loop and trainer are real.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from megatron_urpo.cli import main
from tests.support.world import END, HEADER, TOWER, Chain, write_chain_model, write_config, write_store

SILENT: Chain = {HEADER: {END: 1.0}}
# Empty, endless, and boxes of one number or more: right and wrong answers, readable and unreadable verdicts.
MIXED: Chain = {
    HEADER: {END: 0.2, "a": 0.2, "\\boxed{": 0.6},
    "a": {"a": 0.98, END: 0.02},
    "\\boxed{": {"1": 0.5, "2": 0.5},
    "1": {"}": 0.5, ",": 0.5},
    "2": {"}": 0.5, ",": 0.5},
    ",": {"1": 0.5, "2": 0.5},
}
# A readable verdict of two numbers, either of them the larger.
PAIRS: Chain = {
    HEADER: {"\\boxed{": 1.0}, "\\boxed{": {"1": 0.5, "2": 0.5}, "1": {",": 1.0}, "2": {",": 1.0},
    ",": {"0": 0.5, "3": 0.5}, "0": {"}": 1.0}, "3": {"}": 1.0},
}  # fmt: skip

Row = dict[str, Any]


def train(folder: Path, chain: Chain, answer: str = "1", **changes: Any) -> Result:
    write_chain_model(folder / "model", chain)
    write_store(folder / "train.jsonl", answer=answer)
    return CliRunner().invoke(main, ["train", str(write_config(folder, **changes))])


def metrics(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def groups(folder: Path) -> list[list[Row]]:
    files = sorted((folder / "run" / "transcripts").glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def num_dropped(line: Row) -> float:
    return sum(value for name, value in line.items() if name.startswith("groups/dropped/"))


def test_every_kind_of_bad_completion_is_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    result = train(tmp_path, MIXED, data={"prompts_per_step": 18})
    assert result.exit_code == 0, result.output
    _, *lines = metrics(tmp_path)
    assert len(lines) == len(groups(tmp_path)) == 4
    seen: Counter[str] = Counter()
    for line, step in zip(lines, groups(tmp_path), strict=True):
        completions = [completion for group in step for completion in group["completions"]]
        assert line["completions/empty"] == sum(not completion["text"].strip() for completion in completions)
        reasoning = [c for group in step if group["task"] == "reasoning" for c in group["completions"]]
        cut = sum(completion["finish_reason"] == "length" for completion in reasoning)
        assert line["completions/truncated_fraction/reasoning"] == pytest.approx(cut / len(reasoning))
        verdicts = Counter(judgement["outcome"] for group in step for judgement in group["judgements"])
        for outcome in ("ok", "no_scores", "wrong_count", "truncated"):
            assert line[f"referee/verdict/{outcome}"] == verdicts[outcome]
        causes = Counter(group["dropped"] for group in step if group["dropped"])
        assert num_dropped(line) == causes.total()
        for cause, count in causes.items():
            assert line[f"groups/dropped/{cause}"] == count
        seen += verdicts + causes + Counter(c["outcome"] for c in completions)
        seen["empty"] += int(line["completions/empty"])
        seen["cut"] += cut
    everything = ("correct", "wrong", "no_answer", "ok", "no_scores", "wrong_count", "truncated", "no_signal")
    for name in (*everything, "empty", "cut", "verdict_wrong_count"):
        assert seen[name], f"the chain never gave {name}: {seen}"
    assert any("policy/loss" in line for line in lines)


def test_a_verifier_that_hangs_is_killed_masked_and_named(tmp_path: Path) -> None:
    chain = {HEADER: {"\\boxed{": 1.0}, "\\boxed{": {TOWER: 0.5, "1": 0.5}, TOWER: {"}": 1.0}, "1": {"}": 1.0}}
    result = train(
        tmp_path, chain, answer="x + 1", num_steps=1, verifier={"timeout_seconds": 0.5},
        data={"prompts_per_step": 3, "curriculum": [{"mix": {"reasoning": 1}}]},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    completions = [completion for group in groups(tmp_path)[0] for completion in group["completions"]]
    hung = [completion for completion in completions if TOWER in completion["text"]]
    assert 0 < len(hung) < len(completions)
    assert {(c["outcome"], c["reward"]) for c in hung} == {("verifier_error", None)}
    assert {c["outcome"] for c in completions if c not in hung} == {"wrong"}
    assert metrics(tmp_path)[1]["reasoning/verifier_error_fraction"] == pytest.approx(len(hung) / len(completions))


def test_steps_without_signal_are_recorded_as_empty_and_the_run_goes_on(tmp_path: Path) -> None:
    result = train(tmp_path, SILENT, num_steps=3)
    assert result.exit_code == 0, result.output
    _, *lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["completions/empty"] == 6 * 2
        assert num_dropped(line) == line["groups/total"] == 6
        assert line["groups/dropped/no_signal"] == 4
        assert line["groups/dropped/verdict_no_scores"] == 2
        assert "policy/loss" not in line
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("reasoning", ["most groups were dropped as no_signal", "too hard, too easy"]),
        ("instruction", ["most groups were dropped as verdict_no_scores", "verdicts cannot be read"]),
    ],
)
def test_too_many_empty_steps_in_a_row_stop_the_run_with_the_likely_cause(
    tmp_path: Path, task: str, parts: list[str]
) -> None:
    result = train(
        tmp_path, SILENT, num_steps=5, max_empty_steps=2,
        data={"prompts_per_step": 3, "curriculum": [{"mix": {task: 1}}]},
    )  # fmt: skip
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    for part in ["Error: 2 steps in a row had nothing to learn from", *parts]:
        assert part in line
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1, 2]


def test_a_step_with_signal_ends_the_row_of_empty_ones(tmp_path: Path) -> None:
    """Empty, empty, signal, empty, empty: never three in a row."""
    phases = [{"until": 2, "mix": {"reasoning": 1}}, {"until": 3, "mix": {"preference": 1}}, {"mix": {"reasoning": 1}}]
    result = train(
        tmp_path, PAIRS, answer="7", num_steps=5, max_empty_steps=3,
        data={"prompts_per_step": 6, "curriculum": phases},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert ["policy/loss" in line for line in metrics(tmp_path)[1:]] == [False, False, True, False, False]


def test_a_scorer_that_fails_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("import sys\nsys.exit('the oracle is out')\n")
    evaluation = {"data": [str(tmp_path / "train.jsonl")], "scorer": ["python3", str(scorer)]}
    result = train(tmp_path, PAIRS, num_steps=1, evaluation=evaluation)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("Error: evaluation.scorer: ")
    assert line.endswith("the oracle is out")
