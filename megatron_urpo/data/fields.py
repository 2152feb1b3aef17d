"""Values in a row of data, read strictly: each error is one line with place, field, value and rule."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from megatron_urpo.data.errors import DataError

_MAX_SHOWN = 80


def read_text(fields: Mapping[str, Any], name: str, place: str) -> str:
    """A text that is not blank."""
    text = checked_text(fields.get(name), name, place)
    if not text.strip():
        raise DataError(f"{place}: {name}: is empty; give a text")
    return text


def read_texts(fields: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    value = fields.get(name)
    if not is_list(value):
        raise DataError(f"{place}: {name}: {shown(value)}; give a list of texts")
    return tuple(checked_text(item, f"{name}.{index}", place) for index, item in enumerate(value))


def checked_text(value: object, name: str, place: str) -> str:
    """Any text, empty ones too, that tokenizers can take."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {name}: {shown(value)}; give a text in quotes")
    try:
        value.encode()  # half of a surrogate pair is legal in JSON and breaks tokenizers
    except UnicodeEncodeError:
        raise DataError(f"{place}: {name}: {shown(value)} is not valid Unicode; repair the text") from None
    return value


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def shown(value: object) -> str:
    """`value` on one short line of ASCII."""
    if value is None:
        return "is missing"
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
