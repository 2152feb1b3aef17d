"""Values as bytes and back, without pickle: what is read is plain data, whoever wrote it.

Plain are None, booleans, numbers, texts, bytes, lists, tuples, sets and dictionaries of such, and instances of the
classes that both sides know by name (a task's tree nodes), as their attributes. A value that is none of these arrives
as `Opaque`, which equals nothing. So no `__eq__` of a program ever reaches the side that compares.
"""

import json
from collections.abc import Mapping
from typing import Any

_SCALARS = (bool, int, float, str)
_LISTS = {"l": list, "t": tuple, "s": set, "f": frozenset}
_MAX_DEPTH = 200


class Opaque:
    """Stands for a value that cannot be sent; equal to nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


class NotPlain(ValueError):
    """A value cannot be sent."""


def dumps(value: object, classes: Mapping[str, type]) -> bytes:
    """Raises NotPlain."""
    try:
        return json.dumps(_encode(value, classes, 0)).encode()
    except (ValueError, RecursionError) as error:
        raise NotPlain(str(error)) from None


def loads(data: bytes, classes: Mapping[str, type]) -> Any:
    """Raises ValueError for bytes that `dumps` does not write."""
    try:
        return _decode(json.loads(data), classes, 0)
    except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no plain value: {error}") from None


def _encode(value: Any, classes: Mapping[str, type], depth: int) -> Any:
    """Scalars stand for themselves; everything else is [tag, content]."""
    if depth > _MAX_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None:
        return None
    for scalar in _SCALARS:  # the base class's own conversion: a subclass may have its ideas about str()
        if isinstance(value, scalar):
            return value if type(value) is scalar else scalar(value)
    for tag, kind in _LISTS.items():
        if isinstance(value, kind):
            return [tag, [_encode(item, classes, depth + 1) for item in value]]
    if isinstance(value, dict):
        return ["d", [[_encode(part, classes, depth + 1) for part in item] for item in value.items()]]
    if isinstance(value, bytes | bytearray):
        return ["b", value.hex()]
    if isinstance(value, complex):
        return ["c", [value.real, value.imag]]
    name = type(value).__name__
    if name in classes:
        return ["o", [name, [[key, _encode(item, classes, depth + 1)] for key, item in vars(value).items()]]]
    raise NotPlain(f"a {name}")


def _decode(value: Any, classes: Mapping[str, type], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if value is None or isinstance(value, _SCALARS):
        return value
    tag, content = value
    if tag in _LISTS:
        return _LISTS[tag](_decode(item, classes, depth + 1) for item in content)
    if tag == "d":
        return {_decode(key, classes, depth + 1): _decode(item, classes, depth + 1) for key, item in content}
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "c":
        return complex(*content)
    if tag == "o":
        name, attributes = content
        made: Any = object.__new__(classes[name])
        for key, item in attributes:
            made.__dict__[str(key)] = _decode(item, classes, depth + 1)
        return made
    raise ValueError("an unknown tag")


class Channel:
    """Frames over two descriptors: a letter, the length in four bytes, the bytes."""

    def __init__(self, read_from: int, write_to: int) -> None:
        import os

        self._os_read, self._os_write = os.read, os.write  # as they are now, before any program runs
        self._read_from, self._write_to = read_from, write_to

    def send(self, letter: bytes, data: bytes = b"") -> None:
        frame = letter + len(data).to_bytes(4, "big") + data
        while frame:
            frame = frame[self._os_write(self._write_to, frame) :]

    def receive(self) -> tuple[bytes, bytes]:
        """Raises EOFError."""
        head = self._exactly(5)
        return head[:1], self._exactly(int.from_bytes(head[1:], "big"))

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self._os_read(self._read_from, count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts
