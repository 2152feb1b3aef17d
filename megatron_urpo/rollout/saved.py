"""A rollout as plain values for JSON, and back: the same records, floats to the last digit."""

from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.types import Group, InstructionPrompt, PreferencePrompt, Prompt, ReasoningPrompt

_PROMPTS: dict[str, TypeAdapter[Any]] = {
    kind.task: TypeAdapter(kind) for kind in (ReasoningPrompt, PreferencePrompt, InstructionPrompt)
}
_GROUP = TypeAdapter(Group)


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Nothing but dicts, lists, strings and numbers; each prompt with its task, since its class is not written."""
    values = asdict(rollout)
    for row, group in zip(values["groups"], rollout.groups, strict=True):
        row["prompt"]["task"] = group.prompt.task
    return values


def rollout_from_json(values: dict[str, Any]) -> Rollout:
    """Raises ValueError, KeyError or TypeError for anything that `rollout_to_json` does not give."""
    groups = []
    for row in values["groups"]:
        prompt: Prompt = _PROMPTS[row["prompt"].pop("task")].validate_python(row["prompt"])
        groups.append(_GROUP.validate_python({**row, "prompt": prompt}))
    seconds = {str(work): float(spent) for work, spent in values["seconds"].items()}
    return Rollout(tuple(groups), seconds, tuple(map(str, values["failures"])))
