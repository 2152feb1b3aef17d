"""One sandbox as the trainer sees it: a fork server that is started, given programs one after the other, and killed.

Programs get their job and input as files in memory and answer over a pipe or a socket that is theirs alone; how they
ended comes over another, from the fork server. Everything from a program is bytes with a limit and a deadline.
"""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["namespaces", "processes"]

_SERVER = Path(__file__).parent / "inside" / "server.py"
_ROOT = Path(__file__).parents[4]
_START_SECONDS = 60.0
# The fork server keeps the clock of a program; the trainer's own is for a server that is stopped or starved.
_GRACE_SECONDS = 30.0
_READ_BYTES = 1 << 16
_ADD_SEALS, _ALL_SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8  # fcntl's numbers, which Python 3.11 does not name


class SandboxLost(Exception):
    """The fork server died or went silent; it has been killed."""


class SandboxUnavailable(Exception):
    """The host does not give this level of isolation; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: wall-clock and CPU seconds, memory of a process and of all, processes, size of a file."""

    seconds: float
    cpu_seconds: float
    memory_mib: int
    processes: int
    file_mib: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Ending:
    """Exit code, negative for a signal; `late`: killed by the clock or because it was told to."""

    status: int
    late: bool
    cpu_seconds: float


class Sandbox:
    """Used by one thread at a time; `kill` may come from any.

    Raises:
        SandboxUnavailable: the isolation cannot be set up here.
        SandboxLost: it did not come up.
    """

    def __init__(self, level: Level) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # Python may need it
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_SERVER), level, str(_ROOT)],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=keep, cwd="/", close_fds=True, start_new_session=True,
            )  # fmt: skip
        try:
            first = self._receive(time.monotonic() + _START_SECONDS)
        except SandboxLost:
            self.close()
            raise
        if "failed" in first:
            self.close()
            raise SandboxUnavailable(str(first["failed"]))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, program: str, given: str, limits: Limits) -> tuple[Ending, bytes, bool]:
        """Runs `program` with `given` on its standard input: how it ended, what it printed, whether that was too much.

        Raises SandboxLost.
        """
        taken, their_end = os.pipe()
        try:
            self._begin({"mode": "run", "program": program}, limits, _memory_file(given), their_end)
            return self._gather(taken, limits)
        finally:
            os.close(taken)

    def converse(self, job: dict[str, str], limits: Limits) -> "Conversation":
        """Starts a program that answers in frames. Raises SandboxLost."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._begin(job, limits, theirs.detach(), None)
        return Conversation(self, ours, limits)

    def end_program(self, limits: Limits) -> Ending:
        """Kills what still runs, waits for it. Raises SandboxLost."""
        self._send(b"kill")
        return self._ending(time.monotonic() + limits.seconds + _GRACE_SECONDS)

    def kill(self) -> None:
        """Ends the sandbox with everything in it and leaves no zombie; wakes the thread that waits for it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kills, and closes what no thread waits on any more. May be called again."""
        self.kill()
        self._socket.close()

    def _begin(self, job: dict[str, str], limits: Limits, given: int, taken: int | None) -> None:
        """Hands the descriptors over; `given` is both of input and output where `taken` is None."""
        request = {
            "seconds": limits.seconds, "cpu_seconds": limits.cpu_seconds, "memory_mib": limits.memory_mib,
            "processes": limits.processes, "file_mib": limits.file_mib,
        }  # fmt: skip
        descriptors = [_memory_file(json.dumps(job)), given, given if taken is None else taken]
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
            self._socket.sendmsg([json.dumps(request).encode()], ancillary)
        except OSError as error:
            raise SandboxLost(str(error)) from None
        finally:
            for descriptor in set(descriptors):
                os.close(descriptor)

    def _gather(self, taken: int, limits: Limits) -> tuple[Ending, bytes, bool]:
        output, too_much, ending = bytearray(), False, None
        deadline = time.monotonic() + limits.seconds + _GRACE_SECONDS
        poll = select.poll()  # not select(): a trainer may well have more than 1024 open files
        poll.register(taken, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        is_open = True
        while is_open or ending is None:
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if not ready:
                raise SandboxLost("gave no answer in time")
            if taken in ready:
                chunk = os.read(taken, _READ_BYTES)
                output += chunk[: limits.output_bytes - len(output)]
                if len(chunk) > 0 and len(output) >= limits.output_bytes and not too_much:
                    too_much = True
                    if ending is None:
                        self._send(b"kill")
                if not chunk:
                    is_open = False
                    poll.unregister(taken)
            if self._socket.fileno() in ready and ending is None:
                ending = self._ending(deadline)
        return ending, bytes(output), too_much

    def _ending(self, deadline: float) -> Ending:
        answer = self._receive(deadline)
        return Ending(answer["status"], answer["late"], answer["cpu"])

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except OSError as error:
            raise SandboxLost(str(error)) from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            message = self._socket.recv(4096)
        except OSError as error:
            raise SandboxLost(f"gave no answer: {error}") from None
        if not message:
            raise SandboxLost("died")
        answer: dict[str, Any] = json.loads(message)
        return answer


class Conversation:
    """Frames to and from one program: a letter and bytes. Ends with `end`, whatever happened."""

    def __init__(self, sandbox: Sandbox, socket_: socket.socket, limits: Limits) -> None:
        self._sandbox, self._socket, self._limits = sandbox, socket_, limits
        self._deadline = time.monotonic() + limits.seconds + _GRACE_SECONDS

    def send(self, letter: bytes, data: bytes = b"") -> None:
        """To a program that has gone it is silently lost: `receive` tells."""
        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            self._socket.sendall(letter + len(data).to_bytes(4, "big") + data)
        except OSError:
            return

    def receive(self) -> tuple[bytes, bytes] | None:
        """A frame; None where the program ended, said too much or missed the deadline. Never raises."""
        head = self._exactly(5)
        if head is None:
            return None
        length = int.from_bytes(head[1:], "big")
        data = self._exactly(length) if length <= self._limits.output_bytes else None
        return None if data is None else (head[:1], data)

    def end(self) -> Ending:
        """Kills the program and says how it ended. Raises SandboxLost."""
        self._socket.close()
        return self._sandbox.end_program(self._limits)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
            try:
                part = self._socket.recv(min(count - len(parts), _READ_BYTES))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


def _memory_file(text: str) -> int:
    """A sealed file without a name: what reads it cannot change it for others, and nobody waits for a pipe."""
    descriptor = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, _ADD_SEALS, _ALL_SEALS)
    return descriptor
