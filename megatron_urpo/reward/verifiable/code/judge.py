"""Holds one program against its tests, in sandboxes. What is expected never enters the program's own sandbox.

stdin        every case is a run of its own; the printed text is compared here
calls        one process serves all calls; returned values come as plain data and are compared here
functional   `check` runs in a second sandbox and calls the program over the trainer, plain data in both directions
"""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

from megatron_urpo.reward.verifiable.code.compare import same_text, same_value
from megatron_urpo.reward.verifiable.code.inside.plain import dumps, loads
from megatron_urpo.reward.verifiable.code.sandbox import Conversation, Ending, Limits, Sandbox
from megatron_urpo.types import CallTests, CodeTests, FunctionalTest, StdinTests


@dataclass(frozen=True, slots=True)
class Judged:
    """Cases passed of those there are; `cause` is the first failure's, empty where there is none."""

    num_passed: int
    num_cases: int
    cause: str = ""


class Cell:
    """The sandbox of programs and, once it is needed, the one of tests."""

    def __init__(self, open_sandbox: Callable[[], Sandbox]) -> None:
        self._open = open_sandbox
        self._sandboxes: dict[str, Sandbox] = {}

    def sandbox(self, role: str) -> Sandbox:
        if role not in self._sandboxes:
            self._sandboxes[role] = self._open()
        return self._sandboxes[role]

    @property
    def programs(self) -> Sandbox:
        return self.sandbox("programs")

    @property
    def tests(self) -> Sandbox:
        return self.sandbox("tests")

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(sandbox.pid for sandbox in tuple(self._sandboxes.values()))

    @property
    def alive(self) -> bool:
        return all(sandbox.alive for sandbox in self._sandboxes.values())

    def kill(self) -> None:
        for sandbox in tuple(self._sandboxes.values()):
            sandbox.kill()

    def close(self) -> None:
        for sandbox in tuple(self._sandboxes.values()):
            sandbox.close()


def judge(cell: Cell, program: str, tests: CodeTests, limits: Limits, all_cases: bool) -> Judged:
    """`all_cases`: go on after a failure, to count what passes. Raises SandboxLost."""
    if isinstance(tests, StdinTests):
        return _stdin(cell.programs, program, tests, limits, all_cases)
    if isinstance(tests, CallTests):
        return _calls(cell.programs, program, tests, limits, all_cases)
    return _functional(cell, program, tests, limits)


def _stdin(sandbox: Sandbox, program: str, tests: StdinTests, limits: Limits, all_cases: bool) -> Judged:
    passed, cause = 0, ""
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        ending, output, too_much = sandbox.run(program, given, limits)
        if too_much:
            failure = "output_limit"
        elif ending.status:
            failure = _failure(ending, limits)
        else:
            failure = "" if same_text(output.decode("utf-8", "surrogateescape"), expected) else "wrong_output"
        passed += not failure
        cause = cause or failure
        if cause and not all_cases:
            break
    return Judged(passed, len(tests.inputs), cause)


def _calls(sandbox: Sandbox, program: str, tests: CallTests, limits: Limits, all_cases: bool) -> Judged:
    talk = sandbox.converse(_serve("", program, tests.fn_name), limits)
    passed, cause, is_lost = 0, "", False
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        arguments = [json.loads(line) for line in given.splitlines()]
        talk.send(b"C", dumps([arguments, {}], {}))
        reply = talk.receive()
        if reply is None:
            is_lost = True
            break
        failure = "runtime_error" if reply[0] == b"X" else "" if _is_value(reply, expected) else "wrong_output"
        passed += not failure
        cause = cause or failure
        if cause and not all_cases:
            break
    ending = talk.end()
    if is_lost:
        cause = cause or _failure(ending, limits)
    return Judged(passed, len(tests.inputs), cause)


def _is_value(reply: tuple[bytes, bytes], expected: str) -> bool:
    if reply[0] != b"V":
        return False
    try:
        value, _ = loads(reply[1], {})
    except ValueError:
        return False
    return same_value(value, json.loads(expected))


def _functional(cell: Cell, program: str, tests: FunctionalTest, limits: Limits) -> Judged:
    check_job = {
        "mode": "check",
        "prefix": tests.import_prefix,
        "test_code": tests.test_code,
        "entry": tests.entry_point,
    }
    check = cell.tests.converse(check_job, limits)
    try:
        if check.receive() != (b"L", b""):
            return Judged(0, 1, "bad_tests")
        talk = cell.programs.converse(_serve(tests.import_prefix, program, tests.entry_point), limits)
        cause = _relay(check, talk)
        ending = talk.end()
    finally:
        check.end()
    cause = _failure(ending, limits) if cause == "lost" else cause
    return Judged(int(not cause), 1, cause)


def _relay(check: Conversation, talk: Conversation) -> str:
    """Carries calls to the program and values back until the tests have an opinion: the cause of a failure, or none.

    A `check` that dies or outruns its limits over the values that it was given has not passed.
    """
    raised = False
    while True:
        frame = check.receive()
        if frame is None:
            return "time_limit"
        if frame[0] == b"P":
            return ""
        if frame[0] == b"F":
            return "runtime_error" if raised else "wrong_output"
        if frame[0] != b"C":
            return "bad_tests"
        talk.send(*frame)
        reply = talk.receive()
        if reply is None:
            return "lost"
        raised = reply[0] == b"X"
        check.send(*reply)


def _serve(prefix: str, program: str, entry: str) -> dict[str, str]:
    return {"mode": "serve", "prefix": prefix, "program": program, "entry": entry}


def _failure(ending: Ending, limits: Limits) -> str:
    """The kernel's limit on processor time may strike when a little less is on the program's account."""
    timed_out = ending.late or ending.status == -signal.SIGXCPU or ending.cpu_seconds >= limits.cpu_seconds
    return "time_limit" if timed_out else "runtime_error"
