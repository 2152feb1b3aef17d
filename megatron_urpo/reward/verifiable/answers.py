r"""Finds the final answer in a completion and settles the plain cases without any symbolic mathematics.

The answer is the content of the last `\boxed{...}`. Most answers are plain numbers or texts that equal the truth to
the letter; those are decided here, exactly and at once. What is left goes to `pool.py`. Texts that box nothing can be
read by a pattern instead, e.g. `^A: (.*)$`.
"""

import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import regex

_BOX = re.compile(r"\\boxed\s*\{")
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_PLAIN_NUMBER = re.compile(rf"[+-]?(?:{_NUMBER})")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_UNEVALUATED = re.compile(rf"[+-]?(?:{_NUMBER})(?:\s*(?:[-+*×]|\\cdot|\\times)\s*[+-]?(?:{_NUMBER}))+")
_FORMULA = re.compile(r"\$+\s*([^$]*[^$\s\\])\s*\$+")
_MAX_DIGITS = 100  # reading a number takes time quadratic in its digits


class BadPattern(ValueError):
    """A regular expression that cannot be used; the message says why."""


class AnswerPattern:
    """Finds an answer by a regular expression: its last match, of that the group `answer`, else group 1, else all.

    `^` and `$` are the ends of lines. The `regex` package runs it, since that one can be given a time limit: a pattern
    and a text that do not go together must not stop a run.
    """

    SECONDS = 1.0

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = regex.compile(pattern, regex.MULTILINE)
        except regex.error as error:
            raise BadPattern(f"{pattern!r} is no regular expression: {error}") from None
        groups = self._pattern.groupindex
        self._group = groups.get("answer", 1 if self._pattern.groups else 0)

    def last(self, text: str) -> str | None:
        """The answer, stripped; None where nothing or only white space matches. Raises TimeoutError."""
        matches = deque(self._pattern.finditer(text, timeout=self.SECONDS, concurrent=True), maxlen=1)
        answer = matches[0][self._group] if matches else None
        return (answer or "").strip() or None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` with balanced braces, stripped; None without one or where it is empty.

    A last box that is never closed (a completion cut at the limit) is no answer either: an earlier box held an
    intermediate result. Escaped braces `\{` and `\}` are content.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # the next character is escaped
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position].strip() or None
        position += 1
    return None


def compare_plain(answer: str, accepted: Sequence[str]) -> bool | None:
    """Whether `answer` equals one of the accepted answers; None where only symbolic mathematics can tell.

    - The same text up to white space and surrounding dollar signs is right.
    - Two plain numbers of equal value are right: 1,234 = 1234.0 = +1234.
    - Where all accepted answers are plain numbers, another integer is wrong, and so is a sum or product of plain
      numbers (`3 + 4` for 7): to restate the question is not to answer it.
    """
    text = normalized(answer)
    truths = [normalized(truth) for truth in accepted]
    if text in truths:
        return True
    values = [_value(truth) for truth in truths]
    value = _value(text)
    if value is not None and value in values:
        return True
    if any(truth is None for truth in values):
        return None
    if _UNEVALUATED.fullmatch(text):
        return False
    # Decimals stay undecided: 0.333333 is right for 0.3333333, to the digits that it gives.
    is_integer = value is not None and value.denominator == 1
    return False if is_integer and all(truth.denominator == 1 for truth in values if truth is not None) else None


def normalized(text: str) -> str:
    """White space collapsed, and the dollar signs of a formula taken off where they stand at both ends."""
    text = " ".join(text.split())
    formula = _FORMULA.fullmatch(text)
    return formula.group(1) if formula else text


def _value(text: str) -> Fraction | None:
    if len(text) > _MAX_DIGITS:
        return None
    if _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", ""))
    return Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None
