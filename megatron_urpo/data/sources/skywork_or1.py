"""Skywork/Skywork-OR1-RL-Data, mathematics and both kinds of code, and its AIME files.

`ground_truth` is a text. Mathematics: an answer, or a JSON list of accepted ones. Code (`data_source` or `ability` says
so): JSON of a `check(candidate)` function, or of inputs and outputs, with `fn_name` for calls instead of programs.
"""

import json
from typing import Any

from megatron_urpo.data.sources.base import BOX_REQUEST, Fields, Reader, Row, RowError, any_text, conversation, text


def read(row: Row) -> Fields:
    messages = conversation(row, "prompt")
    model = row.get("reward_model")
    truth = text(model if isinstance(model, dict) else {}, "ground_truth")
    if row.get("ability") == "code" or "-code-" in str(row.get("data_source")):
        return {"messages": messages, "tests": code_tests(truth)}
    return {"messages": messages, "answers": math_answers(truth)}


def math_answers(truth: str) -> list[str]:
    """`["10", "ten"]` is a list of accepted answers; `[1, 2]`, whose items are no texts, is itself the answer."""
    try:
        value = json.loads(truth)
    except ValueError:
        return [truth]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    return [truth]


def code_tests(truth: str) -> dict[str, Any]:
    try:
        tests = json.loads(truth)
    except (ValueError, RecursionError) as error:
        raise RowError(f"ground_truth is not JSON: {error}") from None
    if not isinstance(tests, dict):
        raise RowError("ground_truth is no object of tests")
    if "test_code" in tests:
        return {
            "kind": "functional",
            "import_prefix": any_text({**tests, "import_prefix": tests.get("import_prefix") or ""}, "import_prefix"),
            "test_code": text(tests, "test_code"),
            "entry_point": text(tests, "entry_point"),
        }
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise RowError("ground_truth has neither test_code nor as many inputs as outputs")
    if tests.get("fn_name"):
        arguments = [item if isinstance(item, str) else "\n".join(map(json.dumps, _list(item))) for item in inputs]
        results = [item if isinstance(item, str) else json.dumps(item) for item in outputs]
        return {"kind": "calls", "fn_name": text(tests, "fn_name"), "inputs": arguments, "outputs": results}
    return {"kind": "stdin", "inputs": _programs(inputs), "outputs": _programs(outputs)}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RowError("an input of a call is no list of arguments")
    return value


def _programs(items: list[Any]) -> list[str]:
    """What a program reads or writes; a list of lines is joined."""
    texts = ["\n".join(item) if isinstance(item, list) and all(isinstance(line, str) for line in item) else item
             for item in items]  # fmt: skip
    if not all(isinstance(item, str) for item in texts):
        raise RowError("an input or output of a program is no text")
    return texts


READER = Reader("reasoning", ("prompt", "reward_model"), read, ("data_source", "ability"), suffix=BOX_REQUEST)
