"""Which groups of a run the page holds, so that it opens at once whatever the run's length.

The rule, told in the page as well:
1. Of the steps with a transcript the newest third and, evenly spaced, older ones with the first; MAX_STEPS at most, and
   so many fewer that they fit MAX_BYTES as they stand on disk, but never fewer than MIN_STEPS.
2. The steps share MAX_BYTES evenly, newest first; what one does not use goes to the next.
3. A step that does not fit its share keeps its most suspicious groups in up to half of it, and in the rest groups
   evenly spaced through the step.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_urpo.reporting.report.flags import FLAGS, suspicion
from megatron_urpo.reporting.report.groups import RewardRange, page_group, reward_range
from megatron_urpo.reporting.report.read import RunFiles, json_rows

MAX_STEPS = 100
MIN_STEPS = 8
MAX_BYTES = 6_000_000
SAME_ANSWER_PROMPTS = 3
SAME_ANSWER_CHARACTERS = 12


def sample_groups(run: RunFiles, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """`{"groups": [...], "kept": [{"step", "groups", "of"}], "steps_with_transcript": n, ...}`, newest step first."""
    sizes = {step: file.stat().st_size for step, file in run.transcripts.items()}
    chosen = choose_steps(list(sizes), sizes, max_bytes)
    scores = self_score_range(run)
    groups: list[dict[str, Any]] = []
    kept = []
    room = max_bytes
    for done, step in enumerate(reversed(chosen)):
        members = _step_groups(run, step, scores)
        fitting = fit(members, room // (len(chosen) - done))
        room -= sum(size_of(group) for group in fitting)
        kept.append({"step": step, "groups": len(fitting), "of": len(members)})
        groups += fitting
    flag_same_answers(groups, scores)
    return {"groups": groups, "kept": kept, "steps_with_transcript": len(sizes), "self_score_range": scores}


def choose_steps(steps: Sequence[int], sizes: dict[int, int], max_bytes: int) -> list[int]:
    """Steps in order, the last of them and the first always among them."""
    for count in range(min(len(steps), MAX_STEPS), 0, -1):
        chosen = spread(steps, count)
        if count <= MIN_STEPS or sum(sizes[step] for step in chosen) <= max_bytes:
            return chosen
    return []


def spread(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps: the newest third of `count`, and older ones evenly spaced from the first."""
    if count >= len(steps):
        return list(steps)
    newest = max(1, count // 3)
    older, others = steps[:-newest], count - newest
    gap = len(older) / others if others else 0.0
    return [*(older[int(i * gap)] for i in range(others)), *steps[-newest:]]


def fit(groups: Sequence[dict[str, Any]], max_bytes: int) -> list[dict[str, Any]]:
    """The groups that fit, in their order; at least one."""
    sizes = [size_of(group) for group in groups]
    if sum(sizes) <= max_bytes:
        return list(groups)
    mean = sum(sizes) / len(groups)
    suspicious = sorted(
        (i for i, group in enumerate(groups) if group["suspicion"]), key=lambda i: -groups[i]["suspicion"]
    )
    taken: set[int] = set()
    used = _take(suspicious, sizes, taken, 0, max_bytes / 2)
    wanted = min(len(groups), max(1, int((max_bytes - used) / mean)))
    _take([i * len(groups) // wanted for i in range(wanted)], sizes, taken, used, max_bytes)
    return [groups[i] for i in sorted(taken or {(suspicious or [0])[0]})]


def _take(order: Sequence[int], sizes: Sequence[int], taken: set[int], used: int, limit: float) -> int:
    """Adds to `taken` what fits below `limit`; returns the bytes then used."""
    for index in order:
        if index not in taken and used + sizes[index] <= limit:
            taken.add(index)
            used += sizes[index]
    return used


def size_of(group: dict[str, Any]) -> int:
    return len(json.dumps(group))


def self_score_range(run: RunFiles) -> RewardRange:
    """Of an instruction reward: the referee's scale for one vote, mean ranks for several; [0, 10] if unknown."""
    votes, size = run.setting("referee", "votes"), run.setting("rollout", "completions_per_prompt")
    if isinstance(votes, int) and votes > 1 and isinstance(size, int):
        return 1.0, float(size)
    match run.setting("referee", "score_range"):
        case [int() | float() as low, int() | float() as high]:
            return float(low), float(high)
    return 0.0, 10.0


def flag_same_answers(groups: Sequence[dict[str, Any]], scores: RewardRange) -> None:
    """Marks the instruction answers that are given to several different prompts: the way of a policy that found one
    text which the referee likes."""
    prompts: dict[str, set[str]] = defaultdict(set)
    open_ended = [group for group in groups if group["task"] == "instruction"]
    for group in open_ended:
        question = "\n".join(message["text"] for message in group["messages"])
        for completion in group["completions"]:
            prompts[completion["text"].strip()].add(question)
    flag = "same answer to other prompts"
    assert flag in FLAGS
    for group in open_ended:
        for completion in group["completions"]:
            text = completion["text"].strip()
            if len(text) >= SAME_ANSWER_CHARACTERS and len(prompts[text]) >= SAME_ANSWER_PROMPTS:
                completion["flags"].append(flag)
        group["suspicion"] = suspicion(group, *reward_range("instruction", scores))


def _step_groups(run: RunFiles, step: int, scores: RewardRange) -> list[dict[str, Any]]:
    groups = []
    num_odd = 0
    for row in json_rows(run.transcripts[step], run.notices):
        try:
            groups.append(page_group(step, row, scores))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            num_odd += 1
    if num_odd:
        name = run.transcripts[step].name
        run.notices.append(f"{name}: {num_odd} group(s) of another form than this version writes are left out.")
    return groups
