"""The tests of a program in a row of data: field `tests` to its record and back.

    {"kind": "functional", "import_prefix": text, "test_code": text, "entry_point": name}
        `test_code` defines `check(candidate)`, which raises for a wrong program; the prefix may be empty
    {"kind": "stdin", "inputs": [text], "outputs": [text]}
    {"kind": "calls", "fn_name": name, "inputs": [text], "outputs": [text]}
        an input is the arguments of one call, a JSON value on each line; an output is the JSON value it returns

A null counts as absent, as in the rest of a row.
"""

import json
from collections.abc import Mapping
from typing import Any

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.fields import checked_text, read_text, read_texts, shown
from megatron_urpo.types import CallTests, CodeTests, FunctionalTest, StdinTests

_FIELDS = {
    "functional": ("import_prefix", "test_code", "entry_point"),
    "stdin": ("inputs", "outputs"),
    "calls": ("fn_name", "inputs", "outputs"),
}


def parse_tests(value: object, place: str) -> CodeTests:
    """The record of a `tests` field. Raises DataError, one line that begins with `place`, for whatever is wrong."""
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: tests: {shown(value)}; tests are an object with kind, one of {', '.join(_FIELDS)}")
    fields = {f"tests.{name}": item for name, item in value.items() if item is not None}
    kind = fields.pop("tests.kind", None)
    if not isinstance(kind, str) or kind not in _FIELDS:
        problem = shown(kind) if kind is None else f"{shown(kind)} is unknown"
        raise DataError(f"{place}: tests.kind: {problem}; use one of {', '.join(_FIELDS)}")
    for name in fields:
        if name.removeprefix("tests.") not in _FIELDS[kind]:
            raise DataError(f"{place}: {name}: is not a field of {kind} tests; they have {', '.join(_FIELDS[kind])}")
    if kind == "functional":
        prefix = checked_text(fields.get("tests.import_prefix", ""), "tests.import_prefix", place)
        return FunctionalTest(prefix, _test_code(fields, place), _name(fields, "tests.entry_point", place))
    inputs, outputs = _cases(fields, place)
    if kind == "stdin":
        return StdinTests(inputs, outputs)
    for index, (given, expected) in enumerate(zip(inputs, outputs, strict=True)):
        for line in given.splitlines():
            _check_json(line, f"tests.inputs.{index}", "each line is an argument in JSON", place)
        _check_json(expected, f"tests.outputs.{index}", "an output is the returned value in JSON", place)
    return CallTests(_name(fields, "tests.fn_name", place), inputs, outputs)


def tests_row(tests: CodeTests) -> dict[str, Any]:
    """The field that `parse_tests` reads back as `tests`."""
    values = {name: getattr(tests, name) for name in _FIELDS[tests.kind]}
    return {"kind": tests.kind} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def _test_code(fields: Mapping[str, Any], place: str) -> str:
    code = read_text(fields, "tests.test_code", place)
    if "def check(" not in code:
        raise DataError(f"{place}: tests.test_code: {shown(code)} defines no check; it needs `def check(candidate):`")
    return code


def _name(fields: Mapping[str, Any], name: str, place: str) -> str:
    """A function of the program: a name, or a method as `Class.method` or `Class().method`."""
    text = read_text(fields, name, place)
    if not all(part.removesuffix("()").isidentifier() for part in text.split(".")):
        raise DataError(f"{place}: {name}: {shown(text)} is no name of a function; write NAME or Class().method")
    return text


def _cases(fields: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs = (read_texts(fields, f"tests.{name}", place) for name in ("inputs", "outputs"))
    if not inputs or len(inputs) != len(outputs):
        raise DataError(
            f"{place}: tests.outputs: has {len(outputs)} for {len(inputs)} inputs; give one or more cases, each with"
            " an input and an output"
        )
    return inputs, outputs


def _check_json(text: str, name: str, rule: str, place: str) -> None:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: {name}: {shown(text)} is not JSON; {rule}") from None
