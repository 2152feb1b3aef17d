"""Programs, sandboxes to run them in, and a look at what they left behind."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_urpo.reward.verifiable.code.pool import probe_isolation
from megatron_urpo.reward.verifiable.code.sandbox import Ending, Limits, Sandbox, SandboxUnavailable


def has_namespaces() -> bool:
    try:
        return probe_isolation("namespaces") == "namespaces"
    except SandboxUnavailable:
        return False


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="this host forbids user namespaces")

SMALL = Limits(seconds=3.0, cpu_seconds=1.0, memory_mib=128, processes=6, file_mib=2, output_bytes=1 << 20)
FORKS = """
import os, time
n = 0
try:
    while n < 40:
        if os.fork() == 0: time.sleep(60)
        n += 1
except OSError:
    pass
"""
"""Leaves in `n` how many processes it could start; what asks for it comes behind."""
SECONDS_TO_SPARE = 25  # above the deadline, for a busy machine; a hang would be seen against it


def block(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nDone."


def run(sandbox: Sandbox, program: str, given: str = "") -> tuple[Ending, str]:
    """(how it ended, what it printed) at limits that are SMALL."""
    start = time.monotonic()
    ending, output, _ = sandbox.run(program, given, SMALL)
    assert time.monotonic() - start < SMALL.seconds + SECONDS_TO_SPARE
    return ending, output.decode()


def descendants(pid: int) -> set[int]:
    """Every process below `pid`, whatever session or group it made for itself; namespaces hide none from here."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.02)
