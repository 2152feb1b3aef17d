"""Quality of open-ended answers by a program of the user's: an outside measure, never a reward.

The program gets one JSON object a line, `{"prompt": ..., "completion": ...}`, and writes one `{"quality": number}` for
each, in the same order. It runs as an argument list, never through a shell.
"""

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_urpo.types import Message

TIMEOUT_SECONDS = 600.0


class QualityError(RuntimeError):
    """The scorer program failed: which program, and how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation and the completion of it."""

    messages: tuple[Message, ...]
    completion: str

    @property
    def prompt(self) -> str:
        """The lone user turn, or of a longer conversation every turn with its speaker."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in self.messages)


def rate_answers(
    program: Sequence[str], answers: Sequence[Answer], timeout_seconds: float = TIMEOUT_SECONDS
) -> list[float]:
    """One rating for each answer. Raises QualityError for anything but a finite number each."""
    rows = "".join(json.dumps({"prompt": a.prompt, "completion": a.completion}) + "\n" for a in answers)
    shown = " ".join(program)
    try:
        done = subprocess.run(
            list(program), input=rows.encode(), capture_output=True, timeout=timeout_seconds, check=False
        )
    except OSError as error:
        raise QualityError(f"evaluation.scorer: cannot start {shown!r}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise QualityError(
            f"evaluation.scorer: {shown!r} did not rate {len(answers)} answers within {timeout_seconds:g} s"
        ) from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise QualityError(f"evaluation.scorer: {shown!r} ended with status {done.returncode}: {''.join(last)}")
    ratings = [_rating(line, shown) for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    if len(ratings) != len(answers):
        raise QualityError(f"evaluation.scorer: {shown!r} wrote {len(ratings)} ratings for {len(answers)} answers")
    return ratings


def _rating(line: str, program: str) -> float:
    try:
        quality = json.loads(line)["quality"]
    except (ValueError, TypeError, KeyError):
        quality = None
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not math.isfinite(quality):
        raise QualityError(
            f'evaluation.scorer: {program!r} wrote {line[:80]!r}; each line must be {{"quality": a finite number}}'
        )
    return float(quality)
