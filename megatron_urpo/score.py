"""Scores finished completions by the verifiers of training: for users who wonder why one earned what it earned.

A row is a JSON object on a line:

    {"task": "math", "answer": text or [texts], "completion": text}
    {"task": "code", "tests": {kind, ...}, "completion": text}

`tests` are those of a prompt store (data/code_tests.py). Other fields are kept. Every row is read before anything is
scored, and the file of results appears whole or not at all.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from megatron_urpo.config import ConfigError
from megatron_urpo.config.reward import VerifierConfig
from megatron_urpo.data.code_tests import parse_tests
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.fields import checked_text, shown
from megatron_urpo.data.rows import parse_answers
from megatron_urpo.preflight.verifying import check_isolation, check_pattern
from megatron_urpo.reporting.jsonl import write_rows
from megatron_urpo.reward.verifiable.outcome import Verified
from megatron_urpo.reward.verifiable.verifier import RuleVerifier
from megatron_urpo.types import CodeTests

_FIELDS = {"math": ("answer", "tests"), "code": ("tests", "answer")}  # what a task has, what it must not have
_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """`row` is what the user wrote; a row has `answers` or `tests`, as a ReasoningPrompt has."""

    row: dict[str, Any]
    completion: str
    answers: tuple[str, ...] = ()
    tests: CodeTests | None = None


def score_file(path: Path, out: Path, config: VerifierConfig, skip_bad: bool) -> str:
    """Writes the rows of `path` to `out` with `reward`, `outcome` and (of code) `cause`; returns a summary in words.

    Raises DataError for the first bad row, unless `skip_bad` leaves them out and counts them; ConfigError.
    """
    check_pattern(config)
    if not out.parent.is_dir() or out.is_dir() or out.resolve() == path.resolve():
        raise ConfigError(f"--out: {out} cannot be written; give a new file in a folder that exists")
    rows, problems = read_rows(path)
    if problems and not skip_bad:
        more = f" ({len(problems)} rows are bad; --skip-bad leaves them out)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    if not rows:
        raise DataError(f"{path}: holds no rows that can be scored; give a JSON object on each line")
    if any(row.tests is not None for row in rows):
        check_isolation(config.code)
    results = score_rows(rows, config)
    write_rows(out, [_result_row(row, result) for row, result in zip(rows, results, strict=True)])
    counts: dict[str, int] = {}
    for result in results:
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{out}: {len(rows)} rows: {listed}" + (f"; {len(problems)} bad rows left out" if problems else "")


def read_rows(path: Path) -> tuple[list[ScoreRow], list[str]]:
    """The good rows, and a line for each bad one that says where and why. Raises DataError for an unreadable file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give a JSONL file") from None
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(parse_line(line, f"{path}:{number}"))
            except DataError as error:
                problems.append(str(error))
    return rows, problems


def parse_line(line: bytes, place: str) -> ScoreRow:
    """Raises DataError, one line that begins with `place`."""
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {' '.join(str(error).split())[:200]}; write an object a line") from None
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: the row is {shown(row)}; a row is an object with task, completion and the truth")
    task = row.get("task")
    if not isinstance(task, str) or task not in _FIELDS:
        raise DataError(f"{place}: task: {shown(task)}; use one of {', '.join(_FIELDS)}")
    needed, foreign = _FIELDS[task]
    if row.get(needed) is None or row.get(foreign) is not None:
        raise DataError(f"{place}: {needed}: a {task} row has {needed} and no {foreign}; correct the row")
    completion = checked_text(row.get("completion"), "completion", place)
    if task == "code":
        return ScoreRow(dict(row), completion, tests=parse_tests(row["tests"], place))
    answer = row["answer"]
    answers = parse_answers({"answers": [answer] if isinstance(answer, str) else answer}, place)
    return ScoreRow(dict(row), completion, answers)


def score_rows(rows: Sequence[ScoreRow], config: VerifierConfig) -> list[Verified]:
    """In the order of `rows`, with a progress bar on standard error."""
    bar = Progress(
        "scoring", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with contextlib.closing(RuleVerifier(config)) as verifier, bar:
        task = bar.add_task("", total=len(rows))

        async def all_rows() -> list[Verified]:
            gate = asyncio.Semaphore(_AT_A_TIME)

            async def one(row: ScoreRow) -> Verified:
                async with gate:
                    result = await verifier.verify(row.completion, row)
                    bar.advance(task)
                    return result

            return await asyncio.gather(*map(one, rows))

        return asyncio.run(all_rows())


def _result_row(row: ScoreRow, result: Verified) -> dict[str, Any]:
    scored = {**row.row, "reward": result.reward, "outcome": result.outcome}
    return scored if row.tests is None else {**scored, "cause": result.cause}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
