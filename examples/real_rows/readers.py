"""Readers of three published files into prompts. Each format is the publisher's own; nothing is rewritten on disk.

* GSM8K: `{question, answer}`; the truth is what follows the last `#### `, thousands separators removed.
* alpaca_eval annotations: `{instruction, output_1, output_2, preference, generator_2, ...}`; preference runs from 1
  (output_1 is better) to 2 (output_2), 1.5 is a tie; null means that the annotator gave none: no row. The
  published files also write 0 where both outputs are the same text: a tie.
* alpaca_eval outputs: `{instruction, output, ...}`; an open-ended question.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_urpo.types import InstructionPrompt, Message, PreferencePrompt, Prompt, ReasoningPrompt

BOX_REQUEST = "Put the final answer in \\boxed{}."


def prompts(data_dir: Path) -> Iterator[Prompt]:
    """Every row of the three sources, in their order."""
    yield from reasoning(data_dir / "gsm8k" / "train.jsonl")
    annotations = {
        file.stem.removeprefix("annotations_"): _json(file)
        for file in sorted((data_dir / "alpaca_eval").glob("annotations_*.json"))
    }
    for name, rows in annotations.items():
        yield from pairs(name, rows)
    yield from rankings(list(annotations.values()))
    for i, row in enumerate(_json(data_dir / "alpaca_eval" / "example_outputs.json")):
        yield InstructionPrompt(_instruction_id(i), _user(row["instruction"]), source="alpaca_eval")


def reasoning(path: Path) -> Iterator[ReasoningPrompt]:
    with path.open(encoding="utf-8") as file:
        for i, line in enumerate(file):
            row = json.loads(line)
            messages = _user(f"{row['question']}\n{BOX_REQUEST}")
            yield ReasoningPrompt(f"gsm8k/{path.stem}/{i}", messages, (final_answer(row["answer"]),), "gsm8k")


def final_answer(solution: str) -> str:
    """`... #### 1,234` -> `1234`."""
    _, mark, answer = solution.rpartition("#### ")
    if not mark:
        raise ValueError(f"{solution[-60:]!r} has no `#### `; is this a GSM8K answer?")
    return answer.strip().replace(",", "")


def pairs(name: str, rows: list[dict[str, Any]]) -> Iterator[PreferencePrompt]:
    """One prompt for each judged pair."""
    for i, row in enumerate(rows):
        gold = gold_pair(row["preference"])
        if gold is not None:
            responses = (row["output_1"], row["output_2"])
            yield PreferencePrompt(
                f"alpaca_eval/{name}/{i}", _user(row["instruction"]), responses, gold, source="alpaca_eval"
            )


def gold_pair(preference: float | None) -> tuple[float, float] | None:
    """Gold values of both outputs, larger is better; None where the annotator gave no preference."""
    if preference is None:
        return None
    if preference == 0:
        return (0.5, 0.5)
    if not 1 <= preference <= 2:
        raise ValueError(f"preference {preference!r} is none of null, 0 and 1 to 2")
    return (2.0 - preference, preference - 1.0)


def rankings(files: list[list[dict[str, Any]]]) -> Iterator[PreferencePrompt]:
    """Pairs of one instruction that share `output_1` joined into one ranking: who beat it, it, who lost to it.

    Those on the same side of it are tied: they were never compared with each other.
    """
    by_baseline: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for rows in files:
        for row in rows:
            gold = gold_pair(row["preference"])
            if gold is not None:
                by_baseline[row["instruction"], row["output_1"]].append((row["output_2"], gold[1]))
    for i, ((instruction, baseline), others) in enumerate(by_baseline.items()):
        if len(others) == len(files):
            responses = (baseline, *(output for output, _ in others))
            gold = (0.5, *(value for _, value in others))
            yield PreferencePrompt(
                f"alpaca_eval/ranking/{i}", _user(instruction), responses, gold, source="alpaca_eval"
            )


def instruction_answers(data_dir: Path) -> dict[str, str]:
    """The published outputs of the instruction rows, by prompt id: demonstrations, never rewards."""
    rows = _json(data_dir / "alpaca_eval" / "example_outputs.json")
    return {_instruction_id(i): row["output"] for i, row in enumerate(rows)}


def texts(prompt: Prompt) -> list[str]:
    """All text of a prompt."""
    responses = prompt.responses if isinstance(prompt, PreferencePrompt) else ()
    return [*(message.content for message in prompt.messages), *responses]


def _instruction_id(i: int) -> str:
    return f"alpaca_eval/instruction/{i}"


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def _json(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows
