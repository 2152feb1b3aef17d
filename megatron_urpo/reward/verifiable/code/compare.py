"""Compares what a program gave with what was expected; runs in the trainer, on plain data only.

Printed text: line by line without white space at line ends and without blank lines at the end, word by word. Where the
expected word is written with a decimal point or exponent, another number within 1e-6 (absolute or relative) is equal.
Returned values: JSON against JSON; a tuple counts as a list and keys as text, since JSON has neither; two numbers of
which one is a float are equal within 1e-6; true is not 1.
"""

import math
import re
from typing import Any

TOLERANCE = 1e-6
_DECIMAL = re.compile(
    r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]*[eE][+-]?[0-9]+)"
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_DIGITS = 400
_MAX_DEPTH = 200


def same_text(given: str, expected: str) -> bool:
    theirs, ours = _lines(given), _lines(expected)
    if theirs == ours:
        return True
    if len(theirs) != len(ours):
        return False
    for their_line, our_line in zip(theirs, ours, strict=True):
        their_words, our_words = their_line.split(), our_line.split()
        if len(their_words) != len(our_words):
            return False
        if not all(_same_word(*pair) for pair in zip(their_words, our_words, strict=True)):
            return False
    return True


def same_value(given: Any, expected: Any, depth: int = 0) -> bool:
    """`expected` comes from JSON, `given` from a sandbox as plain values."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(given) is type(expected) and bool(given == expected)
    if isinstance(expected, int | float):
        if isinstance(given, bool) or not isinstance(given, int | float):
            return False
        return given == expected or (_is_float(given, expected) and _close(given, expected))
    if isinstance(expected, list):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(expected)
            and all(same_value(a, b, depth + 1) for a, b in zip(given, expected, strict=True))
        )
    if not isinstance(given, dict) or len(given) != len(expected):
        return False
    by_text = {key if isinstance(key, str) else str(key): value for key, value in given.items()}
    return by_text.keys() == expected.keys() and all(
        same_value(by_text[key], expected[key], depth + 1) for key in expected
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if len(given) > _MAX_DIGITS or not _DECIMAL.fullmatch(expected) or not _NUMBER.fullmatch(given):
        return False
    return _close(float(given), float(expected))


def _is_float(a: float, b: float) -> bool:
    return isinstance(a, float) or isinstance(b, float)


def _close(a: float, b: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # an integer that no float can hold
        return False
