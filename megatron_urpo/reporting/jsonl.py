"""Files of one JSON object a line that survive a crash: a line is written whole, and a torn last one is forgotten."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line in a single write and waits until it is on disk."""
    with path.open("ab", buffering=0) as file:
        file.write(_line(row))
        os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the file as a whole: a reader sees the old rows or the new ones."""
    replace_bytes(path, b"".join(map(_line, rows)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none where it is missing.

    A last line without its end was cut off by a crash and is left out. Raises ValueError for any other line that is
    not a JSON object.
    """
    rows = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object; the file was edited or damaged: remove it")
        rows.append(row)
    return rows


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops every row that is not `wanted`, and a torn last line; the lines that stay keep their bytes."""
    if path.exists():
        pairs = zip(_whole_lines(path), read_rows(path), strict=True)
        replace_bytes(path, b"".join(line + b"\n" for line, row in pairs if wanted(row)))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes beside the file and renames, so that a crash leaves the old content or the new."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _line(row: Mapping[str, Any]) -> bytes:
    # A value that is not finite becomes null, since JSON has no word for it. Text is escaped to ASCII, so no
    # character of a completion can end a line or reach a terminal.
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(plain, allow_nan=False).encode() + b"\n"
