"""One row of a prompt store to its record and back.

A row is a mapping, the same in JSONL and Parquet:

    id, task, messages: [{role, content}], source?       every task
    answers: [text]                                       reasoning: any of them is accepted,
    tests: {kind, ...}                                    or the tests of a program (see code_tests.py)
    responses: [text], scores: [number] or ranks: [...]   preference: scores are larger for better responses,
                                                          ranks count from 1 (best) and are negated here, once

A null counts as absent (Parquet fills the columns that a row does not use). Rows are strict: a field that the task
does not have is an error, because a misspelled one would otherwise change the training silently.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

from megatron_urpo.data.code_tests import parse_tests, tests_row
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.fields import checked_text, is_list, read_text, read_texts, shown
from megatron_urpo.types import TASKS, InstructionPrompt, Message, PreferencePrompt, Prompt, ReasoningPrompt, Task

_COMMON = ("id", "task", "messages", "source")
_FIELDS: dict[Task, tuple[str, ...]] = {
    "reasoning": (*_COMMON, "answers", "tests"),
    "preference": (*_COMMON, "responses", "scores", "ranks"),
    "instruction": _COMMON,
}
_ROLES = ("system", "user", "assistant")


def parse_row(row: object, place: str) -> Prompt:
    """The record of one row. `place` (file and line) opens the message of every DataError raised."""
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: the row is {shown(row)}; a row is an object with id, task and messages")
    fields = {key: value for key, value in row.items() if value is not None}
    task = _task(fields, place)
    prompt_id = read_text(fields, "id", place)
    messages = _messages(fields, place)
    source = read_text(fields, "source", place) if fields.get("source") else ""
    if unknown := [key for key in fields if key not in _FIELDS[task]]:
        raise DataError(f"{place}: {unknown[0]}: is not a field of {task} rows; they have {', '.join(_FIELDS[task])}")
    if task == "reasoning":
        return _reasoning(fields, prompt_id, messages, source, place)
    if task == "preference":
        responses = read_texts(fields, "responses", place)
        if len(responses) < 2:
            raise DataError(
                f"{place}: responses: has {len(responses)}; a ranking needs 2 or more, add one or leave out the row"
            )
        return PreferencePrompt(prompt_id, messages, responses, _gold(fields, len(responses), place), source)
    return InstructionPrompt(prompt_id, messages, source)


def to_row(prompt: Prompt) -> dict[str, Any]:
    """The row that `parse_row` reads back as `prompt`."""
    row: dict[str, Any] = {
        "id": prompt.id,
        "task": prompt.task,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
    }
    if prompt.source:
        row["source"] = prompt.source
    if isinstance(prompt, ReasoningPrompt):
        row |= {"answers": list(prompt.answers)} if prompt.tests is None else {"tests": tests_row(prompt.tests)}
    if isinstance(prompt, PreferencePrompt):
        row |= {"responses": list(prompt.responses), "scores": list(prompt.gold)}
    return row


def _task(fields: Mapping[str, Any], place: str) -> Task:
    value = fields.get("task")
    for task in TASKS:
        if value == task:
            return task
    problem = shown(value) if value is None else f"{shown(value)} is unknown"
    raise DataError(f"{place}: task: {problem}; use one of {', '.join(get_args(Task))}")


def _messages(fields: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    value = fields.get("messages")
    if not is_list(value) or not value:
        raise DataError(f"{place}: messages: {shown(value)}; give a list of at least one {{role, content}}")
    messages = []
    for index, item in enumerate(value):
        if not isinstance(item, Mapping) or set(item) != {"role", "content"}:
            raise DataError(f"{place}: messages.{index}: {shown(item)}; a message is {{role, content}}")
        if item["role"] not in _ROLES:
            raise DataError(f"{place}: messages.{index}.role: {shown(item['role'])}; use one of {', '.join(_ROLES)}")
        messages.append(
            Message(role=item["role"], content=checked_text(item["content"], f"messages.{index}.content", place))
        )
    last = messages[-1]
    if last.role != "user" or not last.content.strip():
        what = "is empty" if last.role == "user" else f"is from {last.role!r}"
        raise DataError(
            f"{place}: messages: the last one {what}; a prompt ends with the user's question that is to be answered"
        )
    return tuple(messages)


def _reasoning(
    fields: Mapping[str, Any], prompt_id: str, messages: tuple[Message, ...], source: str, place: str
) -> ReasoningPrompt:
    """With exactly one of `answers` and `tests`."""
    if "answers" in fields and "tests" in fields:
        raise DataError(f"{place}: tests: a reasoning row has both answers and tests; give exactly one of them")
    if "tests" in fields:
        return ReasoningPrompt(prompt_id, messages, (), source, parse_tests(fields["tests"], place))
    if "answers" not in fields:
        raise DataError(
            f"{place}: answers: is missing; a reasoning row has accepted answers, or the tests of a program"
        )
    return ReasoningPrompt(prompt_id, messages, parse_answers(fields, place), source)


def parse_answers(fields: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The accepted answers in `answers`: one or more, none empty."""
    answers = read_texts(fields, "answers", place)
    if not answers or not all(answer.strip() for answer in answers):
        raise DataError(f"{place}: answers: {shown(list(answers))}; give one or more accepted answers, none empty")
    return answers


def _gold(fields: Mapping[str, Any], num_responses: int, place: str) -> tuple[float, ...]:
    """Larger is better, whichever of `scores` and `ranks` the row gives."""
    given = [name for name in ("scores", "ranks") if name in fields]
    if len(given) != 1:
        what = "has both scores and ranks" if given else "has neither scores nor ranks"
        raise DataError(f"{place}: scores: a preference row {what}; give exactly one of them")
    name = given[0]
    values = fields[name]
    if not is_list(values):
        raise DataError(f"{place}: {name}: {shown(values)}; give a list of numbers, one for each response")
    if len(values) != num_responses:
        raise DataError(f"{place}: {name}: has {len(values)} for {num_responses} responses; give one for each")
    for index, value in enumerate(values):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise DataError(f"{place}: {name}.{index}: {shown(value)}; give a finite number")
    if name == "ranks" and min(values) < 1:
        raise DataError(f"{place}: ranks: the least is {min(values)}; ranks count from 1, the best response")
    return tuple(float(value) if name == "scores" else -float(value) for value in values)
