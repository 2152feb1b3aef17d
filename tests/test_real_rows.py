"""The example on real rows from its own script to its transcripts: every reward is worked out again from the rows.

Nothing here reads a reward with the package's own code: boxes, rankings and means are computed naively.
"""

import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from megatron_urpo.types import Task
from tests.support.real_rows import DATA, ROOT, Row, needs_real_rows, read_jsonl

STEPS = 3
PER_TASK, GROUP_SIZE = 4, 4

pytestmark = needs_real_rows


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the example."""
    folder = tmp_path_factory.mktemp("real_rows")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "DATA": str(DATA),
        "CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "real_rows" / "run.sh"), str(folder / "run")],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder / "run"


@pytest.fixture(scope="module")
def steps(run_dir: Path) -> list[list[Row]]:
    """The groups of each step."""
    return [read_jsonl(run_dir / "transcripts" / f"step_{step:06d}.jsonl") for step in range(1, STEPS + 1)]


def of(task: Task, steps: list[list[Row]]) -> list[Row]:
    return [group for groups in steps for group in groups if group["task"] == task]


def boxed(text: str) -> str | None:
    """The last box without braces in it; None without one or where the last one stays open."""
    found = re.search(r"\\boxed\s*\{([^{}]*)\}", text[text.rindex("\\boxed") :]) if "\\boxed" in text else None
    return found[1].strip() if found else None


def tau(scores: list[float], gold: list[float]) -> float:
    pairs = list(combinations(range(len(gold)), 2))
    concordant = sum((scores[i] - scores[j]) * (gold[i] - gold[j]) > 0 for i, j in pairs)
    discordant = sum((scores[i] - scores[j]) * (gold[i] - gold[j]) < 0 for i, j in pairs)
    return (concordant - discordant) / len(pairs)


def test_every_group_is_whole(steps: list[list[Row]]) -> None:
    for groups in steps:
        assert sorted(group["task"] for group in groups) == sorted(
            ["reasoning", "preference", "instruction"] * PER_TASK
        )
        for group in groups:
            assert group["prompt"]["messages"][0]["content"]
            assert group["num_prompt_tokens"] > 0
            assert len(group["completions"]) == GROUP_SIZE
            for completion in group["completions"]:
                assert {"text", "outcome", "reward", "advantage", "finish_reason"} <= set(completion)
                assert completion["outcome"]
                assert (completion["reward"] is None) == completion["outcome"].startswith(("masked_", "verifier_error"))


def test_reasoning_rewards_follow_from_text_and_published_answer(steps: list[list[Row]]) -> None:
    published = read_jsonl(DATA / "gsm8k" / "train.jsonl")
    for group in of("reasoning", steps):
        row = published[int(group["prompt"]["id"].removeprefix("gsm8k/train/")) - 1]
        assert group["prompt"]["messages"][0]["content"].startswith(row["question"])
        gold = row["answer"].split("#### ")[1].replace(",", "")
        assert group["prompt"]["answers"] == [gold]
        for completion in group["completions"]:
            box = boxed(completion["text"])
            if re.fullmatch(r"\d+", box or ""):
                assert completion["reward"] == float(int(box or "") == int(gold))
                assert completion["outcome"] == ("correct" if completion["reward"] else "wrong")
            elif gold not in completion["text"]:  # with the truth among other characters the verifier decides
                assert completion["reward"] == 0.0
                assert completion["outcome"] in ("wrong", "no_answer")


def test_preference_rewards_follow_from_the_verdicts(steps: list[list[Row]]) -> None:
    files = {file.stem: json.loads(file.read_text()) for file in (DATA / "alpaca_eval").glob("annotations_*.json")}
    categories = json.loads((DATA / "evalbiasbench" / "biasbench.json").read_text())
    biases = [row for rows in categories.values() for row in rows]
    for group in of("preference", steps):
        prompt, gold = group["prompt"], group["prompt"]["gold"]
        source, name, number = prompt["id"].split("/")
        if name in files:
            row = files[name][int(number) - 1]
            assert prompt["responses"] == [row["output_1"], row["output_2"]]
            assert gold == {1: [1.0, 0.0], 2: [0.0, 1.0], 0: [0.5, 0.5]}[row["preference"]]
        elif source == "evalbiasbench":
            row = biases[int(number) - 1]
            assert prompt["responses"] == [row["response1"], row["response2"]]
            assert gold == {1: [1.0, 0.0], 2: [0.0, 1.0]}[row["label"]]
        else:
            assert source == "rankings"
            assert len(prompt["responses"]) == 4
        for completion, judgement in zip(group["completions"], group["judgements"], strict=True):
            assert judgement["text"] == completion["text"]
            assert judgement["outcome"] == completion["outcome"]
            if completion["outcome"] != "ok":
                assert judgement["scores"] == []
                assert completion["reward"] == -1.0
                continue
            shown = [float(score) for score in (boxed(completion["text"]) or "").split(",")]
            assert [judgement["scores"][candidate] for candidate in judgement["permutation"]] == shown
            assert completion["reward"] == pytest.approx(tau(judgement["scores"], gold))


def test_instruction_groups_are_scored_or_masked_with_a_cause(steps: list[list[Row]]) -> None:
    for group in of("instruction", steps):
        *before, last = group["judgements"]
        assert len(before) <= 1
        assert all(judgement["outcome"] != "ok" for judgement in before)
        outcomes = {completion["outcome"] for completion in group["completions"]}
        if last["outcome"] == "ok":
            assert outcomes == {"scored"}
            assert [completion["reward"] for completion in group["completions"]] == last["scores"]
        else:
            assert len(before) == 1, "one that cannot be read is asked for again"
            assert outcomes == {f"masked_verdict_{last['outcome']}"}
            assert group["dropped"] == f"verdict_{last['outcome']}"


def test_advantages_and_metrics_follow_from_the_rewards(steps: list[list[Row]], run_dir: Path) -> None:
    first, *metrics = read_jsonl(run_dir / "metrics.jsonl")
    assert [line["step"] for line in (first, *metrics)] == list(range(STEPS + 1))
    for line, groups in zip(metrics, steps, strict=True):
        causes = [group["dropped"] for group in groups if group["dropped"]]
        for name in {*causes, "no_signal"}:
            assert line[f"groups/dropped/{name}"] == causes.count(name)
        for task in ("reasoning", "preference", "instruction"):
            rewards = [c["reward"] for g in of(task, [groups]) for c in g["completions"] if c["reward"] is not None]
            assert line.get(f"reward/mean/{task}") == (pytest.approx(fmean(rewards)) if rewards else None)
        for group in groups:
            rewards = [completion["reward"] for completion in group["completions"]]
            advantages = [completion["advantage"] for completion in group["completions"]]
            if group["dropped"]:
                assert advantages == [None] * GROUP_SIZE
            else:
                expected = [(reward - fmean(rewards)) / pstdev(rewards) for reward in rewards]
                assert advantages == pytest.approx(expected, rel=1e-4)


def test_the_policy_was_trained_and_written(steps: list[list[Row]], run_dir: Path) -> None:
    metrics = read_jsonl(run_dir / "metrics.jsonl")[1:]
    for line, groups in zip(metrics, steps, strict=True):
        if any(group["dropped"] is None for group in groups):
            assert line["tokens/train"] > 0
            assert line["policy/grad_norm"] > 0
            assert line["mismatch/max"] < 1e-3
    assert any("policy/loss" in line for line in metrics), "no step had a signal: the seed model learned no format"
    assert {"correct", "wrong", "no_answer"} & {c["outcome"] for g in of("reasoning", steps) for c in g["completions"]}
    assert "ok" in {c["outcome"] for g in of("preference", steps) for c in g["completions"]}
    assert (run_dir / "model" / "model.safetensors").is_file()
