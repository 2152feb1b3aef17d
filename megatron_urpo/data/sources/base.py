"""What a reader of a public dataset is: from one published row to the fields of a store's row.

A reader raises RowError for a row that does not fit, with a reason that stands beside file and line in rejected.jsonl.
It repairs nothing silently: what it changes (negated ranks, corrected scores) its own docstring says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_urpo.types import Task

Row = Mapping[str, Any]
Fields = dict[str, Any]

BOX_REQUEST = "Put the final answer in \\boxed{}."


class RowError(ValueError):
    """A published row that is not what its dataset's rows are."""


@dataclass(frozen=True, slots=True)
class Reader:
    """`read` gives messages and one of answers, tests, responses + scores | ranks, or none of them.

    `columns` are the fields that every row has, `optional` those it may have: no others are read from Parquet.
    `task` is the default; any dataset may also give `instruction` prompts, by its questions alone.
    `suffix` is added to a reasoning question that asks for no box.
    """

    task: Task
    columns: tuple[str, ...]
    read: Callable[[Row], Fields]
    optional: tuple[str, ...] = ()
    suffix: str = ""


def text(row: Row, name: str) -> str:
    """A text that is not blank."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name} {'is missing' if value is None else f'is {_kind(value)}, not a text'}")
    if not value.strip():
        raise RowError(f"{name} is empty")
    return value


def any_text(row: Row, name: str) -> str:
    """A text that may be empty, as a model's answer may."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name} {'is missing' if value is None else f'is {_kind(value)}, not a text'}")
    return value


def rows_of(row: Row, name: str) -> list[Row]:
    """A list of objects."""
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(i, Mapping) for i in value):
        raise RowError(f"{name} {'is missing' if value is None else 'is no list of objects'}")
    return list(value)


def number(row: Row, name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{name} {'is missing' if value is None else f'is {_kind(value)}, not a number'}")
    return float(value)


def conversation(row: Row, name: str) -> list[dict[str, str]]:
    """Messages as {role, content}; what else a turn carries is left behind."""
    turns = rows_of(row, name)
    if not turns:
        raise RowError(f"{name} is empty")
    return [{"role": text(turn, "role"), "content": any_text(turn, "content")} for turn in turns]


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
