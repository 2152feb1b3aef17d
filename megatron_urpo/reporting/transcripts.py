"""Everything that was said in a step, one JSON object a group, so that each reward can be explained.

Text of models and data sets is written as JSON strings in ASCII: nothing in it can break a line, a file or a terminal.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_urpo.reporting.jsonl import write_rows
from megatron_urpo.types import Completion, Group, Judgement, PreferencePrompt, Prompt, ReasoningPrompt


def write_transcript(
    path: Path,
    groups: Sequence[Group],
    causes: Sequence[str | None],
    advantages: Sequence[Sequence[float | None]],
) -> None:
    """Writes the groups of a step.

    `causes[g]` is why group g is not trained on, `advantages[g][i]` that of completion i; None where there is none.
    """
    rows = zip(groups, causes, advantages, strict=True)
    write_rows(path, [group_row(i, *row) for i, row in enumerate(rows)])


def group_row(index: int, group: Group, cause: str | None, advantages: Sequence[float | None]) -> dict[str, Any]:
    """One group as plain values."""
    causes = [{"cause": cause} for cause in group.causes] or [{}] * len(group.completions)
    completions = zip(group.completions, group.texts, group.rewards, group.outcomes, causes, advantages, strict=True)
    return {
        "group": index,
        "task": group.prompt.task,
        "prompt": _prompt(group.prompt),
        "num_prompt_tokens": len(group.prompt_ids),
        "dropped": cause,
        "completions": [
            {"text": text, **_tokens(completion), "outcome": outcome, **cause, "reward": reward, "advantage": advantage}
            for completion, text, reward, outcome, cause, advantage in completions
        ],
        "judgements": [_judgement(judgement) for judgement in group.judgements],
    }


def _prompt(prompt: Prompt) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": prompt.id,
        "source": prompt.source,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
    }
    if isinstance(prompt, ReasoningPrompt):
        row["answers"] = list(prompt.answers)
        if prompt.tests is not None:
            row["tests"] = {"kind": prompt.tests.kind} | asdict(prompt.tests)
    if isinstance(prompt, PreferencePrompt):
        row |= {"responses": list(prompt.responses), "gold": list(prompt.gold)}
    return row


def _tokens(completion: Completion) -> dict[str, Any]:
    return {
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "versions": sorted({span.version for span in completion.spans}),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    """Position p of the scoring prompt showed response `permutation[p]`; `scores` are in the responses' own order."""
    return {
        "permutation": list(judgement.scoring.permutation),
        "num_prompt_tokens": len(judgement.scoring.prompt_ids),
        "num_cut": judgement.scoring.num_cut,
        "text": judgement.text,
        **_tokens(judgement.completion),
        "outcome": judgement.verdict.outcome,
        "scores": list(judgement.verdict.scores),
    }
