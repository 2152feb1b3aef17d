"""HumanEval's 164 problems: what is right passes, what is wrong is rejected, one token off included."""

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from megatron_urpo.config.reward import CodeConfig
from megatron_urpo.reward.verifiable.code.pool import CodeVerifier
from megatron_urpo.types import FunctionalTest
from tests.support.programs import block, needs_namespaces
from tests.support.real_rows import DATA, ROOT

FILE = DATA / "humaneval" / "HumanEval.jsonl.gz"
pytestmark = [needs_namespaces, pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is absent")]


@cache
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    # Time in plenty: a busy machine must not decide here.
    made = CodeVerifier(CodeConfig(timeout_seconds=30.0))
    yield made
    made.close()


def outcomes(verifier: CodeVerifier, programs: dict[str, str]) -> dict[str, str]:
    """By task. What stands before the function, helpers of the tests among it, is the tests' prefix."""

    async def all_at_once() -> list[str]:
        asked = []
        for row in rows():
            prefix = row["prompt"][: row["prompt"].rindex(f"def {row['entry_point']}(")]
            tests = FunctionalTest(prefix, row["test"], row["entry_point"])
            asked.append(verifier.verify(block(programs[row["task_id"]]), tests))
        return [result.outcome for result in await asyncio.gather(*asked)]

    return dict(zip((row["task_id"] for row in rows()), asyncio.run(all_at_once()), strict=True))


def test_every_canonical_solution_passes(verifier: CodeVerifier) -> None:
    programs = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows()}
    found = outcomes(verifier, programs)
    assert len(found) == 164
    assert {task: outcome for task, outcome in found.items() if outcome != "correct"} == {}


def test_every_body_of_return_none_is_rejected(verifier: CodeVerifier) -> None:
    found = outcomes(verifier, {row["task_id"]: row["prompt"] + "    return None\n" for row in rows()})
    assert {task: outcome for task, outcome in found.items() if outcome != "wrong"} == {}


def test_a_mutant_of_one_token_of_every_solution_is_rejected(verifier: CodeVerifier) -> None:
    command = [sys.executable, "-I", str(ROOT / "tests" / "support" / "mutants.py"), str(FILE)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    programs = {mutant["task_id"]: mutant["program"] for mutant in map(json.loads, printed.splitlines())}
    assert [task for task, program in programs.items() if program is None] == []
    assert len(programs) == 164
    found = outcomes(verifier, programs)
    assert {task: outcome for task, outcome in found.items() if outcome != "wrong"} == {}
