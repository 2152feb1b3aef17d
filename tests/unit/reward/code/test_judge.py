# ruff: noqa: E501 (programs and hostile texts read better on their own lines)
"""The three kinds of tests: right programs, wrong ones, and those that go for the checker instead of the task."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_urpo.config.reward import CodeConfig
from megatron_urpo.reward.verifiable.code.judge import _failure
from megatron_urpo.reward.verifiable.code.pool import CodeVerifier
from megatron_urpo.reward.verifiable.code.sandbox import Ending
from megatron_urpo.reward.verifiable.outcome import Verified
from megatron_urpo.types import CallTests, CodeTests, FunctionalTest, StdinTests
from tests.support.programs import SMALL as SMALL_LIMITS
from tests.support.programs import block, descendants, needs_namespaces, wait_until

pytestmark = needs_namespaces

SMALL = {"timeout_seconds": 1.0, "memory_mib": 128, "output_kib": 64, "workers": 1}
ADD = FunctionalTest(
    "", "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0", "add"
)
DOUBLE = StdinTests(("1\n", "5\n"), ("2\n", "10\n"))
PAIRS = CallTests("pairs", ("[1, 2]\n3", '[]\n"x"'), ("[[1, 3], [2, 3]]", "[]"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = CodeVerifier(CodeConfig(**SMALL))
    yield made
    made.close()


def verify(verifier: CodeVerifier, program: str, tests: CodeTests) -> Verified:
    return asyncio.run(verifier.verify(block(program), tests))


RIGHT: list[tuple[str, CodeTests]] = [
    ("def add(a, b): return a + b", ADD),
    ("class Solution:\n    def add(self, a, b): return a + b", FunctionalTest("", ADD.test_code, "Solution().add")),
    ("class Solution:\n    def add(self, a, b): return a + b", ADD),
    ("import os; print(os.getcwd())\nadd = lambda a, b: a + b", ADD),
    ("print(2 * int(input()))", DOUBLE),
    ("import sys\nfor line in sys.stdin: print(int(line) * 2, end='  \\n\\n')", DOUBLE),
    ("if __name__ == '__main__': print(2 * int(open(0).read()))", DOUBLE),
    ("import sys, threading\nthreading.stack_size(1 << 24)\ndef f(): print(2 * int(open('/dev/stdin').read()))\n"
     "t = threading.Thread(target=f); t.start(); t.join(); sys.exit(0)", DOUBLE),
    ("def pairs(a, b): return [(x, b) for x in a]", PAIRS),
    ("class Solution:\n    def pairs(self, a, b): print('noise'); return [[x, b] for x in a]", PAIRS),
]  # fmt: skip


@pytest.mark.parametrize(("program", "tests"), RIGHT, ids=range(len(RIGHT)))
def test_right_programs(verifier: CodeVerifier, program: str, tests: CodeTests) -> None:
    assert verify(verifier, program, tests) == Verified("correct", 1.0)


WRONG: list[tuple[str, CodeTests, str]] = [
    ("def add(a, b): return a - b", ADD, "wrong_output"),
    ("def add(a): return a", ADD, "runtime_error"),
    ("def sub(a, b): return a + b", ADD, "runtime_error"),
    ("def add(a, b) return a + b", ADD, "runtime_error"),
    ("print(3 * int(input()))", DOUBLE, "wrong_output"),
    ("print(2 * int(input())); raise ValueError", DOUBLE, "runtime_error"),
    ("while True: pass", DOUBLE, "time_limit"),
    ("def add(a, b):\n    while True: pass", ADD, "time_limit"),
    ("def pairs(a, b):\n    while True: pass", PAIRS, "time_limit"),
    ("while True: print('x' * 1000)", DOUBLE, "output_limit"),
    ("def pairs(a, b): return 'x' * 10**6", PAIRS, "runtime_error"),
    ("x = bytearray(10**9)", DOUBLE, "runtime_error"),
    # For the checker: none of these knows what is expected.
    ("import sys\nsys.exit(0)", ADD, "runtime_error"),
    ("import os\nos._exit(0)", ADD, "runtime_error"),
    ("import sys\ndef add(a, b): sys.exit(0)", ADD, "runtime_error"),
    ("import os\ndef add(a, b): os._exit(0)", ADD, "runtime_error"),
    ("import sys\ndef pairs(a, b): sys.exit(0)", PAIRS, "runtime_error"),
    ("import sys\nsys.exit(0)", DOUBLE, "wrong_output"),
    ("class Any:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n    __hash__ = None\n"
     "def add(a, b): return Any()", ADD, "wrong_output"),
    ("class Any:\n    def __eq__(self, o): return True\ndef pairs(a, b): return Any()", PAIRS, "wrong_output"),
    ("class Any(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef add(a, b): return Any(9)", ADD, "wrong_output"),
    ("class Any(list):\n    def __eq__(self, o): return True\ndef pairs(a, b): return Any([7])", PAIRS, "wrong_output"),
    ("class AssertionError(Exception): pass\nimport builtins\nbuiltins.AssertionError = None\n"
     "def check(candidate): pass\ndef add(a, b): return None", ADD, "wrong_output"),
    ("import sys, builtins\nsys.settrace(lambda *a: None)\nbuiltins.all = builtins.isinstance = lambda *a: True\n"
     "def add(a, b): return 0", ADD, "runtime_error"),
    # Frames to every descriptor there is: `passed`, and values.
    ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'P\\0\\0\\0\\0' * 9)\n    except OSError: pass\n"
     "def add(a, b): return 0", ADD, "wrong_output"),
    ("import os\ndef add(a, b):\n    for fd in range(3, 64):\n        try: os.write(fd, b'V\\xff\\xff\\xff\\xff')\n"
     "        except OSError: pass\n    return 0", ADD, "runtime_error"),
    # The expected output's file, the tests, the caller's frames, the heap.
    ("import os\nfor root, _, names in os.walk('/tmp'):\n    for name in names: print(open(os.path.join(root, name)).read())\n"
     "print(open('/proc/self/cmdline').read())", DOUBLE, "wrong_output"),
    ("import gc, sys\ndef add(a, b):\n    f = sys._getframe()\n    seen = []\n    while f: seen.append(dict(f.f_locals)); f = f.f_back\n"
     "    text = repr(seen) + repr([o for o in gc.get_objects() if isinstance(o, (str, dict))])\n"
     "    return 5 if 'assert candidate(2, 3)' in text else 0", ADD, "wrong_output"),
    ("import shutil\nshutil.rmtree('/tmp', ignore_errors=True)\nimport os\nos.system('rm -rf /')\ndef add(a, b): return 0", ADD, "wrong_output"),
    ("def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x", ADD, "wrong_output"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "tests", "cause"), WRONG, ids=range(len(WRONG)))
def test_wrong_programs_and_cheats(verifier: CodeVerifier, program: str, tests: CodeTests, cause: str) -> None:
    result = verify(verifier, program, tests)
    assert (result.outcome, result.reward) == ("wrong", 0.0)
    if cause != result.cause:
        # A late program may end by its clock or by the one of the machine; nothing else is open.
        assert {cause, result.cause} <= {"runtime_error", "time_limit", "output_limit"}


def test_no_program_is_no_answer(verifier: CodeVerifier) -> None:
    for text in ("", "def add(a, b): return a + b", "```\nadd = sum\n```", "```python\nadd = 1", "```python\n\n```"):
        assert asyncio.run(verifier.verify(text, ADD)) == Verified("no_answer", 0.0)


def test_fraction_on_request() -> None:
    half = StdinTests(("1", "2", "3", "4"), ("1", "2", "0", "0"))
    calls = CallTests("f", ("1", "2", "3", "4"), ("1", "2", "0", "4"))
    verifier = CodeVerifier(CodeConfig(**SMALL, reward="fraction"))
    try:
        assert verify(verifier, "print(input())", half) == Verified("wrong", 0.5, "wrong_output")
        assert verify(verifier, "def f(x): return x", calls) == Verified("wrong", 0.75, "wrong_output")
        assert verify(verifier, "def f(x):\n    if x > 2: exit()\n    return x", calls).reward == 0.5
        assert verify(verifier, "def f(x): return x if x != 3 else 0", calls) == Verified("correct", 1.0)
        assert verify(verifier, "def add(a, b): return a + b", ADD).reward == 1.0
    finally:
        verifier.close()


def test_tests_that_do_not_load_are_the_verifiers_fault_and_masked(verifier: CodeVerifier) -> None:
    for code in ("def check(candidate) assert", "import absent_module\ndef check(candidate): pass"):
        result = verify(verifier, "def add(a, b): return a + b", FunctionalTest("", code, "add"))
        assert result == Verified("verifier_error", None, "bad_tests")
    unsendable = "def check(candidate): assert candidate(lambda: 1, 2)"
    assert verify(verifier, "def add(a, b): return 1", FunctionalTest("", unsendable, "add")).reward is None


NODES = FunctionalTest(
    "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n",
    "def check(candidate):\n    out = candidate(Node(1, Node(2)))\n    assert out.value == 2 and out.next.value == 1\n"
    "    items = [3, 1, 2]\n    candidate(items)\n    assert items == [1, 2, 3]\n",
    "turn",
)  # fmt: skip


def test_objects_of_the_task_and_changes_in_place_travel(verifier: CodeVerifier) -> None:
    program = "def turn(x):\n    if isinstance(x, list): return x.sort()\n    return Node(x.next.value, Node(x.value))"
    assert verify(verifier, program, NODES).outcome == "correct"
    assert verify(verifier, program.replace("x.sort()", "sorted(x)"), NODES).outcome == "wrong"
    sly = "class Node:\n    def __init__(self, *a): pass\n    value = property(lambda s: 2)\n    def __eq__(self, o): return True\n"
    assert verify(verifier, sly + "def turn(x): return Node()", NODES).outcome == "wrong"


def test_a_sandbox_that_dies_is_replaced_and_the_program_tried_again(verifier: CodeVerifier) -> None:
    assert verify(verifier, "def add(a, b): return a + b", ADD).outcome == "correct"
    for pid in verifier.pids:
        os.kill(pid, signal.SIGKILL)
    assert verify(verifier, "def add(a, b): return a + b", ADD).outcome == "correct"

    async def killed_at_work() -> Verified:
        task = asyncio.create_task(
            verifier.verify(block("import time\ntime.sleep(0.5)\nprint(2 * int(input()))"), DOUBLE)
        )
        await asyncio.sleep(0.2)
        for pid in verifier.pids:
            os.kill(pid, signal.SIGKILL)
        return await task

    assert asyncio.run(killed_at_work()).outcome == "correct"


def test_closing_kills_programs_at_work() -> None:
    verifier = CodeVerifier(CodeConfig(**SMALL | {"timeout_seconds": 60.0}))

    async def close_at_work() -> Verified:
        task = asyncio.create_task(verifier.verify(block("while True: pass"), DOUBLE))
        while not verifier.pids or not any(len(descendants(pid)) == 2 for pid in verifier.pids):
            await asyncio.sleep(0.02)
        pids.update(verifier.pids, *(descendants(pid) for pid in verifier.pids))
        await asyncio.to_thread(verifier.close)
        return await task

    pids: set[int] = set()
    assert asyncio.run(close_at_work()).reward is None
    assert len(pids) == 3
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    verifier.close()
    with pytest.raises(RuntimeError):
        verify(verifier, "def add(a, b): return a + b", ADD)


def test_the_kernels_limit_is_a_time_limit_even_a_little_early() -> None:
    assert _failure(Ending(-signal.SIGXCPU, False, 0.99), SMALL_LIMITS) == "time_limit"
    assert _failure(Ending(-signal.SIGSEGV, False, 0.99), SMALL_LIMITS) == "runtime_error"
