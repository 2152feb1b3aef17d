"""Stores: what is written is read back, and each mistake in a file is one line that says where, what and which rule."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.store import load_prompts, write_store
from megatron_urpo.types import (
    CallTests,
    CodeTests,
    FunctionalTest,
    InstructionPrompt,
    Message,
    PreferencePrompt,
    Prompt,
    ReasoningPrompt,
    StdinTests,
)

QUESTION = [{"role": "user", "content": "2 + 2?"}]
REASONING = {"id": "r", "task": "reasoning", "messages": QUESTION, "answers": ["4"]}
PREFERENCE = {"id": "p", "task": "preference", "messages": QUESTION, "responses": ["4", "5"], "scores": [1, 0]}
INSTRUCTION = {"id": "i", "task": "instruction", "messages": QUESTION}
CODE = {"id": "c", "task": "reasoning", "messages": QUESTION}
FUNCTIONAL = {
    "kind": "functional",
    "test_code": "def check(candidate):\n    assert candidate() == 4",
    "entry_point": "f",
}
STDIN = {"kind": "stdin", "inputs": ["2 2\n", ""], "outputs": ["4\n", ""]}
CALLS = {"kind": "calls", "fn_name": "Solution().add", "inputs": ['2\n[2, "a"]'], "outputs": ["4"]}
SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet"]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts([path])
    return str(caught.value)


def test_rows_become_records_and_ranks_are_negated(tmp_path: Path) -> None:
    ranked = {key: value for key, value in PREFERENCE.items() if key != "scores"} | {"id": "q", "ranks": [2, 1.5]}
    path = write_rows(tmp_path / "a.jsonl", REASONING | {"source": "made up"}, PREFERENCE, ranked, INSTRUCTION)
    messages = (Message("user", "2 + 2?"),)
    assert load_prompts([path]) == [
        ReasoningPrompt("r", messages, ("4",), "made up"),
        PreferencePrompt("p", messages, ("4", "5"), (1.0, 0.0)),
        PreferencePrompt("q", messages, ("4", "5"), (-2.0, -1.5)),
        InstructionPrompt("i", messages),
    ]


def test_tests_become_records(tmp_path: Path) -> None:
    rows = [CODE | {"id": f"{i}", "tests": tests} for i, tests in enumerate((FUNCTIONAL, STDIN, CALLS))]
    rows[1]["answers"] = None  # as Parquet fills it
    loaded = load_prompts([write_rows(tmp_path / "a.jsonl", *rows)])
    assert [prompt.tests for prompt in loaded if isinstance(prompt, ReasoningPrompt)] == [
        FunctionalTest("", "def check(candidate):\n    assert candidate() == 4", "f"),
        StdinTests(("2 2\n", ""), ("4\n", "")),
        CallTests("Solution().add", ('2\n[2, "a"]',), ("4",)),
    ]


def test_stores_follow_each_other_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    first, second = write_rows(tmp_path / "a.jsonl", REASONING), write_rows(tmp_path / "b.jsonl", INSTRUCTION)
    first.write_text("\n" + first.read_text() + "  \n")
    assert [prompt.id for prompt in load_prompts([second, first])] == ["i", "r"]


characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, min_size=1, max_size=12).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def code_tests() -> st.SearchStrategy[CodeTests]:
    anything = st.text(characters, max_size=9)
    cases = st.lists(st.tuples(anything, anything), min_size=1, max_size=3)
    values = st.recursive(
        st.none() | st.booleans() | numbers | anything, lambda inner: st.lists(inner, max_size=2), max_leaves=4
    ).map(json.dumps)
    calls = st.lists(st.tuples(st.lists(values, max_size=3).map("\n".join), values), min_size=1, max_size=3)
    return st.one_of(
        st.builds(FunctionalTest, anything, anything.map("def check(c): {}".format), st.just("f")),
        cases.map(lambda pairs: StdinTests(*map(tuple, zip(*pairs, strict=True)))),
        calls.map(lambda pairs: CallTests("f", *map(tuple, zip(*pairs, strict=True)))),
    )


@st.composite
def prompts(draw: st.DrawFn) -> list[Prompt]:
    result: list[Prompt] = []
    for prompt_id in draw(st.lists(texts, min_size=1, max_size=4, unique=True)):
        messages = (Message("system", draw(st.text(characters, max_size=3))), Message("user", draw(texts)))
        source = draw(st.one_of(st.just(""), texts))
        kind = draw(st.integers(0, 3))
        if kind == 3:
            result.append(ReasoningPrompt(prompt_id, messages, (), source, draw(code_tests())))
        elif kind == 0:
            answers = tuple(draw(st.lists(texts, min_size=1, max_size=3)))
            result.append(ReasoningPrompt(prompt_id, messages, answers, source))
        elif kind == 1:
            responses = tuple(draw(st.lists(st.one_of(st.just(""), texts), min_size=2, max_size=4)))
            gold = tuple(draw(st.lists(numbers, min_size=len(responses), max_size=len(responses))))
            result.append(PreferencePrompt(prompt_id, messages, responses, gold, source))
        else:
            result.append(InstructionPrompt(prompt_id, messages, source))
    return result


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=prompts())
def test_round_trip(tmp_path: Path, suffix: str, stored: list[Prompt]) -> None:
    path = tmp_path / f"store{suffix}"
    write_store(path, stored)
    assert load_prompts([path]) == stored
    first = path.read_bytes()
    write_store(path, load_prompts([path]))
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


BAD_ROWS: list[tuple[object, list[str]]] = [
    ([1, 2], ["[1, 2]", "a row is an object"]),
    (REASONING | {"task": "resoning"}, ["task: 'resoning' is unknown", "reasoning, preference, instruction"]),
    (without(REASONING, "task"), ["task: is missing"]),
    (REASONING | {"task": ["reasoning"]}, ["task: ['reasoning'] is unknown"]),
    (without(REASONING, "id"), ["id: is missing"]),
    (REASONING | {"id": 7}, ["id: 7", "text in quotes"]),
    (REASONING | {"id": " "}, ["id: is empty"]),
    (REASONING | {"messages": []}, ["messages: []", "at least one"]),
    (REASONING | {"messages": "2 + 2?"}, ["messages: '2 + 2?'"]),
    (REASONING | {"messages": [{"role": "user"}]}, ["messages.0", "{role, content}"]),
    (REASONING | {"messages": [{"role": "human", "content": "?"}]}, ["messages.0.role: 'human'", "system, user"]),
    (REASONING | {"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, ["messages", "'assistant'"]),
    (REASONING | {"messages": [{"role": "user", "content": "\n"}]}, ["messages: the last one is empty"]),
    (REASONING | {"messages": [{"role": "user", "content": "\ud800"}]}, ["messages.0.content", "Unicode"]),
    (without(REASONING, "answers"), ["answers: is missing"]),
    (REASONING | {"answers": "4"}, ["answers: '4'", "list of texts"]),
    (REASONING | {"answers": [4]}, ["answers.0: 4", "text in quotes"]),
    (REASONING | {"answers": []}, ["answers: []", "one or more"]),
    (REASONING | {"answers": ["4", " "]}, ["answers: ['4', ' ']", "none empty"]),
    (REASONING | {"anwsers": ["4"]}, ["anwsers: is not a field of reasoning rows"]),
    (INSTRUCTION | {"answers": ["4"]}, ["answers: is not a field of instruction rows"]),
    (CODE | {"answers": ["4"], "tests": STDIN}, ["tests: a reasoning row has both answers and tests"]),
    (CODE | {"tests": [STDIN]}, ["tests: [{", "tests are an object with kind"]),
    (CODE | {"tests": {}}, ["tests.kind: is missing", "functional, stdin, calls"]),
    (CODE | {"tests": STDIN | {"kind": "io"}}, ["tests.kind: 'io' is unknown"]),
    (CODE | {"tests": STDIN | {"fn_name": "f"}}, ["tests.fn_name: is not a field of stdin tests"]),
    (CODE | {"tests": STDIN | {"inputs": "2"}}, ["tests.inputs: '2'", "list of texts"]),
    (CODE | {"tests": STDIN | {"inputs": ["2", 2]}}, ["tests.inputs.1: 2", "text in quotes"]),
    (CODE | {"tests": STDIN | {"inputs": [], "outputs": []}}, ["tests.outputs: has 0 for 0 inputs"]),
    (CODE | {"tests": STDIN | {"outputs": ["4"]}}, ["tests.outputs: has 1 for 2 inputs"]),
    (CODE | {"tests": without(CALLS, "fn_name")}, ["tests.fn_name: is missing"]),
    (CODE | {"tests": CALLS | {"fn_name": "f(); import os"}}, ["tests.fn_name: 'f(); import os' is no name"]),
    (CODE | {"tests": CALLS | {"inputs": ["2\n[2"]}}, ["tests.inputs.0: '[2' is not JSON"]),
    (CODE | {"tests": CALLS | {"outputs": ["[" * 10**6]}}, ["tests.outputs.0: '[[", "not JSON"]),
    (CODE | {"tests": without(FUNCTIONAL, "entry_point")}, ["tests.entry_point: is missing"]),
    (CODE | {"tests": FUNCTIONAL | {"test_code": "assert f() == 4"}}, ["tests.test_code", "defines no check"]),
    (INSTRUCTION | {"tests": STDIN}, ["tests: is not a field of instruction rows"]),
    (PREFERENCE | {"responses": ["4"], "scores": [1]}, ["responses: has 1", "2 or more"]),
    (without(PREFERENCE, "scores"), ["neither scores nor ranks"]),
    (PREFERENCE | {"ranks": [1, 2]}, ["both scores and ranks"]),
    (PREFERENCE | {"scores": [1, 2, 3]}, ["scores: has 3 for 2 responses"]),
    (PREFERENCE | {"scores": 1}, ["scores: 1", "list of numbers"]),
    (PREFERENCE | {"scores": [1, float("nan")]}, ["scores.1: nan", "finite"]),
    (PREFERENCE | {"scores": [1, float("inf")]}, ["scores.1: inf", "finite"]),
    (PREFERENCE | {"scores": [1, None]}, ["scores.1: is missing"]),
    (PREFERENCE | {"scores": [True, 0]}, ["scores.0: True", "finite number"]),
    (PREFERENCE | {"scores": ["1", 0]}, ["scores.0: '1'"]),
    (without(PREFERENCE, "scores") | {"ranks": [0, 1]}, ["ranks: the least is 0", "from 1"]),
]


@pytest.mark.parametrize(("row", "parts"), BAD_ROWS, ids=[parts[0] for _, parts in BAD_ROWS])
def test_bad_row_is_named(tmp_path: Path, row: object, parts: list[str]) -> None:
    path = write_rows(tmp_path / "bad.jsonl", INSTRUCTION | {"id": "fine"}, row)
    message = error_of(path)
    assert message.startswith(f"{path}:2: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_long_values_are_shortened(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "bad.jsonl", REASONING | {"messages": "x" * 10_000})
    assert len(error_of(path)) < len(str(path)) + 300


def test_ids_are_unique_over_all_stores(tmp_path: Path) -> None:
    first, second = (
        write_rows(tmp_path / "a.jsonl", REASONING),
        write_rows(tmp_path / "b.jsonl", INSTRUCTION, REASONING),
    )
    with pytest.raises(DataError, match="ids are unique") as caught:
        load_prompts([first, second])
    assert str(caught.value).startswith(f"{second}:2: id: 'r' was used at {first}:1")


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    assert "is no file" in error_of(tmp_path / "absent.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is no file" in error_of(tmp_path / "folder.jsonl")
    assert "suffix" in error_of(write_rows(tmp_path / "rows.json", REASONING))
    assert "holds no rows" in error_of(write_rows(tmp_path / "empty.jsonl"))
    (tmp_path / "broken.jsonl").write_text(json.dumps(REASONING) + '\n{"id": "x", \n')
    assert "broken.jsonl:2: is not JSON" in error_of(tmp_path / "broken.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    assert "latin.jsonl:1: is not JSON" in error_of(tmp_path / "latin.jsonl")
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(REASONING))
    assert "cannot be read" in error_of(tmp_path / "plain.jsonl.gz")
    whole = gzip.compress(json.dumps(REASONING).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in error_of(tmp_path / "cut.jsonl.gz")
    (tmp_path / "plain.parquet").write_text("not parquet at all")
    assert "cannot be read as Parquet" in error_of(tmp_path / "plain.parquet")


def test_bad_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    messages = (Message("user", "?"),)
    write_store(path, [InstructionPrompt("a", messages), PreferencePrompt("b", messages, ("only one",), (1.0,))])
    assert error_of(path).startswith(f"{path}: row 2: responses: has 1")
