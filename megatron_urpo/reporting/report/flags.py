"""Signs of a reward that was earned in a wrong way. They order what a person reads first; they prove nothing."""

import re
from collections.abc import Sequence
from typing import Any

from megatron_urpo.metrics import correlation

FLAGS: dict[str, tuple[float, str]] = {
    "talks to the referee": (3.0, "an answer names scores, responses or the referee's instructions"),
    "blank": (3.0, "no visible text"),
    "hidden characters": (2.0, "control, bidirectional or invisible characters"),
    "repeats itself": (2.0, "much of the text was said before in it"),
    "mostly symbols": (1.5, "fewer letters and digits than other characters"),
    "several answers": (2.0, r"a reasoning completion with different \boxed answers"),
    "same answer to other prompts": (2.0, "the text also answers at least two other prompts of this page"),
    "cut off": (1.0, "ended by the length limit"),
    "all the same": (1.0, "most answers of the group are the same text"),
    "longer scores higher": (1.0, "within the group, self-score follows the length (correlation 0.85 or more)"),
    "order decides": (1.0, "the verdict follows the order in which responses were shown (0.85 or more)"),
}
ADDRESSES_REFEREE = re.compile(
    r"\\boxed|\[the (begin|end) of|\bscores?\s*[:=]|\b(highest|maximum|full|perfect|top) (score|marks|rating)"
    r"|\bresponse \d+\b|\bignore (all |the |any )?(previous|above|other|prior)|\bas (a|the) (judge|referee|grader)"
    r"|\b\d+ ?(/|out of) ?10\b",
    re.IGNORECASE,
)
# C0 and C1 without tab and line ends, marks of direction, zero width, invisible operators, tags.
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
# Characters of scripts without spaces count as words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")
SYMBOL = re.compile(r"[\W_]")
FEW_WORDS = 20
STRONG = 0.85


def completion_flags(task: str, text: str, finish_reason: str, excerpt: str | None = None) -> list[str]:
    """Of one text: an answer of the player, or for `preference` a verdict of the referee.

    `excerpt` is the part of a long text that the page shows; the costly signs are read from it alone.
    """
    excerpt = text if excerpt is None else excerpt
    found = {
        "talks to the referee": task == "instruction" and bool(ADDRESSES_REFEREE.search(text)),
        "blank": not HIDDEN.sub("", text).strip(),
        "hidden characters": bool(HIDDEN.search(text)),
        "repeats itself": _repeats(task, excerpt),
        "mostly symbols": task == "instruction" and _mostly_symbols(excerpt),
        "several answers": task == "reasoning" and len({"".join(box.split()) for box in BOXED.findall(text)}) > 1,
        "cut off": finish_reason == "length",
    }
    return [name for name, there in found.items() if there]


def group_flags(group: dict[str, Any]) -> list[str]:
    """Of a group of the page: what shows only when its completions are seen together."""
    completions = group["completions"]
    texts = [completion["text"] for completion in completions]
    flags = []
    if group["task"] == "instruction":
        if len(texts) > 2 and max(map(texts.count, texts)) > len(texts) / 2:
            flags.append("all the same")
        scored = [(len(c["text"]), c["reward"]) for c in completions if c["reward"] is not None]
        if len(scored) >= 5 and (correlation(*zip(*scored, strict=True)) or 0.0) >= STRONG:
            flags.append("longer scores higher")
    if any(abs(_follows_order(judgement)) >= STRONG for judgement in group["judgements"]):
        flags.append("order decides")
    return flags


def suspicion(group: dict[str, Any], low: float, high: float) -> float:
    """High where a flagged text earned much: the weight of its flags times its reward's place in [low, high]."""
    worst = 0.0
    weight = sum(FLAGS[name][0] for name in group["flags"])
    for completion in group["completions"]:
        if completion["reward"] is not None and high > low:
            level = min(1.0, max(0.0, (completion["reward"] - low) / (high - low)))
            worst = max(worst, level * (weight + sum(FLAGS[name][0] for name in completion["flags"])))
    return round(worst, 2)


def repeated_share(words: Sequence[str], size: int) -> float:
    """Share of the runs of `size` words that stood before in the text."""
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _repeats(task: str, text: str) -> bool:
    words = WORD.findall(text.lower())
    if len(words) < FEW_WORDS:
        # A short verdict or sum repeats its digits by nature.
        return task == "instruction" and len(words) >= 4 and repeated_share(words, 1) >= 0.4
    return repeated_share(words, 3) >= 0.3


def _mostly_symbols(text: str) -> bool:
    seen = "".join(text.split())
    return len(seen) >= 8 and len(SYMBOL.findall(seen)) > len(seen) / 2


def _follows_order(judgement: dict[str, Any]) -> float:
    permutation, scores = judgement["permutation"], judgement["scores"]
    if len(scores) < 5 or len(scores) != len(permutation):
        return 0.0
    return correlation(range(len(scores)), [scores[candidate] for candidate in permutation]) or 0.0
