"""The program in a completion: its last fenced block of Python."""

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "python3", "py")
MAX_PROGRAM_CHARACTERS = 200_000


def last_program(text: str) -> str | None:
    """The content of the last block that opens with ```python; None without one.

    A last block that never closes (a completion cut at the limit) is no program, as a box that never closes is no
    answer. Blocks of other languages are passed over, whatever they hold.
    """
    program: str | None = None
    start: int | None = None
    is_python = False
    for fence in _FENCE.finditer(text):
        if start is None:
            start, is_python = fence.end() + 1, fence.group(1).lower() in _PYTHON
        elif not fence.group(1):
            if is_python:
                program = text[start : fence.start()]
            start = None
    if start is not None and is_python:
        return None
    return program if program and program.strip() else None
