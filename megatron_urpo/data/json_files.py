"""JSON files whose rows are not lines: one array, one object, or one object of lists of rows."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_urpo.data.errors import DataError

_BLANK = " \t\r\n"


def is_one_object(head: bytes) -> bool:
    """Whether a .json file that begins with `{` is one object and not lines of objects, as many are called."""
    first_line, _, others = head.lstrip().partition(b"\n")
    try:
        json.loads(first_line)
    except (ValueError, RecursionError):
        return head.lstrip().startswith(b"{")
    return not others.strip()


def object_rows(
    file: Path, stream: io.BufferedReader, limit: int, required: set[str]
) -> Iterator[tuple[int, bytes | None]]:
    """A file that is one row, or one object of lists of rows, such as the categories of a benchmark."""
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{file}: is one JSON object above max_row_mib; write it as lines of JSON, one row each")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}; repair it") from None
    if isinstance(value, dict) and not required & set(value) and all(_is_rows(item) for item in value.values()):
        rows = [row for category in value.values() for row in category]
    else:
        rows = [value]
    for number, row in enumerate(rows, start=1):
        yield number, json.dumps(row).encode()


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def array_rows(
    file: Path, stream: io.BufferedReader, limit: int, block_size: int
) -> Iterator[tuple[int, bytes | None]]:
    """The elements of one JSON array, with no more of it in memory than the element at hand.

    An array has no line ends to start again from: where it is broken, reading ends.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")().decode
    buffer, position, number, done = "", 0, 0, False

    def more() -> bool:
        nonlocal buffer, position, done
        block = stream.read(max(block_size, len(buffer) - position))
        try:
            buffer, position = buffer[position:] + decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: row {number + 1}: is not UTF-8: {error}; convert it") from None
        done = not block
        return not done

    def skip(marks: str) -> str:
        nonlocal position
        while True:
            while position < len(buffer) and buffer[position] in marks:
                position += 1
            if position < len(buffer) or not more():
                return buffer[position : position + 1]

    skip(_BLANK)
    position += 1  # the bracket
    while (mark := skip(_BLANK if number == 0 else f"{_BLANK},")) not in ("]", ""):
        try:
            _, end = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ValueError) and len(buffer) - position <= limit and (not done and more()):
                continue
            if len(buffer) - position > limit:
                raise DataError(
                    f"{file}: row {number + 1}: does not end within max_row_mib; it is broken, or raise max_row_mib"
                ) from None
            raise DataError(f"{file}: row {number + 1}: is not JSON ({error}); repair the file") from None
        if end == len(buffer) and not done and more():
            continue  # a number may go on
        number += 1
        row = buffer[position:end].encode(errors="surrogatepass")
        position = end
        yield number, row if len(row) <= limit else None
    if not mark:
        raise DataError(f"{file}: ends within its array, after row {number}; it is cut off, fetch it again")
