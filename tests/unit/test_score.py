"""`megatron-urpo score` as a user meets it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from megatron_urpo.cli import main
from tests.support.programs import block, needs_namespaces

ROOT = Path(__file__).parents[2]
MATH = {"task": "math", "answer": "42", "completion": r"\boxed{42}"}
CODE = {"task": "code", "tests": {"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}, "completion": block("print(2)")}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def score(rows: Path, *arguments: str) -> tuple[Result, Path]:
    out = rows.with_name("scored.jsonl")
    return CliRunner().invoke(main, ["score", str(rows), "--out", str(out), *arguments]), out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_namespaces
def test_every_outcome(tmp_path: Path) -> None:
    rows = [
        MATH | {"id": 7, "note": ["kept", "\u2028"]},
        MATH | {"answer": ["1", r"\frac{1}{2}"], "completion": r"\boxed{0.5}"},
        MATH | {"completion": r"\boxed{41}"},
        MATH | {"completion": "42"},
        MATH | {"answer": "x + 1", "completion": r"\boxed{99999999999!}"},
        CODE,
        CODE | {"completion": block("print(3)")},
        CODE | {"completion": "print(2)"},
    ]
    result, out = score(write(tmp_path / "rows.jsonl", *rows, ""), "verifier.timeout_seconds=0.5")
    assert result.exit_code == 0, result.output
    assert "8 rows: 3 correct, 2 no_answer, 1 verifier_error, 2 wrong" in result.output
    scored = read(out)
    assert [(row["reward"], row["outcome"], row.get("cause")) for row in scored] == [
        (1.0, "correct", None), (1.0, "correct", None), (0.0, "wrong", None), (0.0, "no_answer", None),
        (None, "verifier_error", None), (1.0, "correct", ""), (0.0, "wrong", "wrong_output"), (0.0, "no_answer", ""),
    ]  # fmt: skip
    assert [{name: row[name] for name in given} for row, given in zip(scored, rows, strict=True)] == rows


def test_a_pattern_finds_what_is_not_boxed(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", MATH | {"completion": "6 * 7\nA: 42"}, MATH)
    result, out = score(rows, "--answer-pattern", "^A: (.*)$")
    assert result.exit_code == 0, result.output
    assert [row["outcome"] for row in read(out)] == ["correct", "no_answer"]


BAD: list[tuple[Any, str]] = [
    ('{"task": "math", ', "is not JSON"),
    ("[1]", "a row is an object"),
    ('{"task": "math", "x": NaN}', "NaN is no JSON value"),
    ("\x00", "is not JSON"),
    (MATH | {"task": "poetry"}, "task: 'poetry'; use one of math, code"),
    ({"task": "math", "completion": ""}, "answer: a math row has answer and no tests"),
    (MATH | {"tests": CODE["tests"]}, "answer: a math row has answer and no tests"),
    (MATH | {"answer": []}, "answers: []"),
    (MATH | {"answer": 42}, "answers: 42"),
    (MATH | {"completion": None}, "completion: is missing"),
    (MATH | {"completion": "\ud800"}, "not valid Unicode"),
    (CODE | {"tests": {"kind": "stdin", "inputs": ["1"], "outputs": []}}, "tests.outputs: has 0 for 1"),
]


@pytest.mark.parametrize(("row", "part"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_before_anything_is_written(tmp_path: Path, row: Any, part: str) -> None:
    rows = write(tmp_path / "rows.jsonl", MATH, row)
    result, out = score(rows)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {rows}:2: ")
    assert part in line
    assert not out.exists()


def test_bad_rows_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", MATH, "{", MATH | {"task": 1}, MATH)
    result, out = score(rows, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "2 rows: 2 correct; 2 bad rows left out" in result.output
    assert len(read(out)) == 2
    assert "2 rows are bad; --skip-bad leaves them out" in score(rows)[0].stderr


def test_other_mistakes_are_one_line(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", MATH)
    for arguments, part in (
        (("--answer-pattern", "("), "verifier.answer_pattern: '(' is no regular expression"),
        (("verifier.wrokers=1",), "did you mean `workers`?"),
        (("verifier.code.isolation=magic",), "verifier.code.isolation"),
        (("--out", str(tmp_path / "no" / "out.jsonl")), "--out: "),
        (("--out", str(rows)), "--out: "),
    ):
        result, _ = score(rows, *arguments)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert part in result.stderr
    assert "cannot be read" in score(tmp_path / "absent.jsonl")[0].stderr
    assert "holds no rows" in score(write(tmp_path / "empty.jsonl"))[0].stderr
    assert rows.read_text() == json.dumps(MATH) + "\n"


@needs_namespaces
@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="no program `unshare` to make a host without namespaces with"
)
def test_a_host_without_namespaces_refuses_unless_less_is_allowed(tmp_path: Path) -> None:
    """A namespace that may have none inside stands for such a host."""
    rows = write(tmp_path / "rows.jsonl", CODE, CODE | {"completion": block("print(3)")})
    script = """
        echo 0 > /proc/sys/user/max_user_namespaces
        "$0" -m megatron_urpo.cli score "$1" --out "$2.a"; echo "status $?"
        "$0" -m megatron_urpo.cli score "$1" --out "$2.b" verifier.code.isolation=any; echo "status $?"
    """
    out = tmp_path / "out"
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    done = subprocess.run([*command, sys.executable, str(rows), str(out)], cwd=ROOT, capture_output=True, text=True)
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: verifier.code.isolation: namespaces is not to be had on this host")
    assert done.stdout.count("status 2") == 1, done.stdout
    assert done.stdout.count("status 0") == 1, done.stdout
    assert not Path(f"{out}.a").exists()
    assert [row["outcome"] for row in read(Path(f"{out}.b"))] == ["correct", "wrong"]
