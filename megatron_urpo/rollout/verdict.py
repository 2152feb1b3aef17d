"""Reads the referee's text. A verdict is read whole or not at all: nothing is guessed, padded or cut into a score.

* The scores are what the last `\\boxed{...}` holds. A last box that never closes is no box, whatever stood before it.
* A score is a decimal number in plain digits with an optional sign. `7/10`, `1e1`, `nan` and words are not.
* A text that ended for any reason but a stop token is `truncated`, even after a complete box: what was cut off
  might have been another box.
"""

import re
from collections.abc import Sequence

from megatron_urpo.types import FinishReason, Verdict, VerdictOutcome

_BOX = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def read_verdict(
    text: str,
    finish_reason: FinishReason,
    permutation: Sequence[int],
    score_range: tuple[float, float],
) -> Verdict:
    """The verdict on `len(permutation)` candidates, its scores in the candidates' own order.

    Position p of the box scores candidate `permutation[p]`. Never raises, whatever `text` holds.
    """
    if finish_reason != "stop":
        return Verdict("truncated")
    scores = _read_scores(text, len(permutation), score_range)
    if isinstance(scores, str):
        return Verdict(scores)
    by_candidate = dict(zip(permutation, scores, strict=True))
    return Verdict("ok", tuple(by_candidate[candidate] for candidate in range(len(permutation))))


def _read_scores(text: str, count: int, score_range: tuple[float, float]) -> list[float] | VerdictOutcome:
    """Scores in the order of the box, or why there are none."""
    content = _last_box(text)
    if content is None or not content.strip():
        return "no_scores"
    items = [item.strip() for item in content.split(",")]
    if len(items) != count:
        return "wrong_count"
    if not all(_NUMBER.fullmatch(item) for item in items):
        return "not_a_number"
    low, high = score_range
    scores = [float(item) for item in items]
    if not all(low <= score <= high for score in scores):
        return "out_of_range"
    return scores


def _last_box(text: str) -> str | None:
    """What stands between the braces of the last box; None without a box or where the last one stays open."""
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None
