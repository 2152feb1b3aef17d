"""One child process of the verifier, as its parent sees it: started, asked with a deadline, killed."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("math_worker.py")
_START_SECONDS = 120.0  # importing sympy from a cold network disk
_READ_BYTES = 65536


class ChildLost(Exception):
    """The child died, hung or never came up; it has been killed and reaped."""


class VerifierChild:
    """Runs `math_worker.py`. Used by one thread at a time; `kill` may come from any.

    The child ends with its parent: its standard input closes when the parent dies, and a child that computes at that
    moment is ended by its own timers.

    Raises:
        ChildLost: the child did not become ready; the message has the reason.
    """

    def __init__(self, timeout_seconds: float, memory_mib: int):
        self._process = subprocess.Popen(
            # -P: the worker's folder stays off its import path, where a module's name could hide a library's.
            [sys.executable, "-P", str(_WORKER), str(timeout_seconds), str(memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Each BLAS thread would reserve address space, of which the child has little.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            reply = self._read(time.monotonic() + _START_SECONDS)
            if "failed" in reply:
                raise ChildLost(str(reply["failed"]))
        except ChildLost:
            self.kill()
            self.close_pipes()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def compare(self, answer: str, accepted: Sequence[str], seconds: float) -> str:
        """`correct`, `wrong` or `error` within `seconds` of wall-clock time.

        Raises:
            ChildLost: no answer in time, or the child died over it.
        """
        assert self._process.stdin is not None
        deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps({"answer": answer, "accepted": list(accepted)}).encode() + b"\n")
        except BrokenPipeError:
            self.kill()
            raise ChildLost("died before it was asked") from None
        return str(self._read(deadline)["result"])

    def kill(self) -> None:
        """Ends the child at once and leaves no zombie; harmless when it is gone."""
        self._process.kill()
        self._process.wait()

    def close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # not select(): a trainer may well have more than 1024 open files
        poll.register(descriptor, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            chunk = os.read(descriptor, _READ_BYTES) if ready else b""
            if not chunk:
                self.kill()
                raise ChildLost("died" if ready else "gave no answer in time")
            line += chunk
        reply: dict[str, Any] = json.loads(line)
        return reply
