"""One line of a transcript as the page has it: checked, long texts shortened, suspicious signs added."""

import json
import math
from typing import Any

from megatron_urpo.reporting.report.flags import completion_flags, group_flags, suspicion

# A verdict ends its text, a question begins it: both ends stay.
MAX_HEAD = 2400
MAX_TAIL = 1600

PREFERENCE_RANGE = (-1.0, 1.0)
REASONING_RANGE = (0.0, 1.0)

RewardRange = tuple[float, float]


def page_group(step: int, row: dict[str, Any], self_score_range: RewardRange) -> dict[str, Any]:
    """Raises KeyError, TypeError, ValueError or AttributeError for a row that no transcript writer made.

    A text longer than MAX_HEAD + MAX_TAIL loses its middle: `cut` beside it counts the characters left out.
    """
    prompt = row["prompt"]
    task = _word(row["task"])
    completions = [_completion(task, completion) for completion in row["completions"]]
    group: dict[str, Any] = {
        "step": step,
        "group": _whole(row["group"]),
        "task": task,
        "id": _word(prompt["id"]),
        "source": _word(prompt["source"]),
        "messages": [{"role": _word(m["role"]), **shortened(m["content"])} for m in prompt["messages"]],
        "dropped": None if row["dropped"] is None else _word(row["dropped"]),
        "completions": completions,
        "judgements": [_judgement(judgement) for judgement in row["judgements"]],
    }
    if task == "reasoning":
        group["answers"] = [_word(answer) for answer in prompt["answers"]]
        if "tests" in prompt:
            group["tests"] = shortened(json.dumps(prompt["tests"], indent=1, ensure_ascii=False))
    if task == "preference":
        group["responses"] = [shortened(response) for response in prompt["responses"]]
        group["gold"] = [_finite(value) for value in prompt["gold"]]
    _check(group)
    group["flags"] = group_flags(group)
    group["suspicion"] = suspicion(group, *reward_range(task, self_score_range))
    return group


def reward_range(task: str, self_score_range: RewardRange) -> RewardRange:
    return {"preference": PREFERENCE_RANGE, "reasoning": REASONING_RANGE}.get(task, self_score_range)


def shortened(text: Any) -> dict[str, Any]:
    """`{"text": ..., "cut": n}`; `cut` is missing where nothing was left out, `at` says where it was."""
    if not isinstance(text, str):
        raise TypeError("a text must be a string")
    left_out = len(text) - MAX_HEAD - MAX_TAIL
    if left_out <= 0:
        return {"text": text}
    return {"text": text[:MAX_HEAD] + text[-MAX_TAIL:], "at": MAX_HEAD, "cut": left_out}


def _completion(task: str, row: dict[str, Any]) -> dict[str, Any]:
    finish_reason = _word(row["finish_reason"])
    shown = shortened(row["text"])
    return {
        **shown,
        "tokens": _whole(row["num_tokens"]),
        "finish": finish_reason,
        "outcome": _word(row["outcome"]),
        "reward": None if row["reward"] is None else _finite(row["reward"]),
        "advantage": None if row["advantage"] is None else _finite(row["advantage"]),
        "flags": completion_flags(task, row["text"], finish_reason, shown["text"]),
    }


def _judgement(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "permutation": [_whole(place) for place in row["permutation"]],
        "cut_responses": _whole(row["num_cut"]),
        **shortened(row["text"]),
        "tokens": _whole(row["num_tokens"]),
        "finish": _word(row["finish_reason"]),
        "outcome": _word(row["outcome"]),
        "scores": [_finite(score) for score in row["scores"]],
    }


def _check(group: dict[str, Any]) -> None:
    """The page indexes these lists by each other."""
    task, judgements = group["task"], group["judgements"]
    count = len(group["responses"]) if task == "preference" else len(group["completions"])
    if task == "preference" and not len(group["gold"]) == count:
        raise ValueError("responses and gold differ in number")
    if task == "preference" and judgements and len(judgements) != len(group["completions"]):
        raise ValueError("a preference group has one judgement for each completion")
    for judgement in judgements:
        if sorted(judgement["permutation"]) != list(range(count)) or len(judgement["scores"]) not in (0, count):
            raise ValueError("a judgement is not about the group's responses")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a word must be a string")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a count must be a whole number")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("a number must be finite")
    return float(value)
