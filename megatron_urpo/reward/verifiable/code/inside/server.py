"""The fork server of one sandbox: a program is a fork away, not the start of an interpreter.

Run by path, with an empty environment: `server.py LEVEL`. Descriptor 0 is a socket to the trainer. One request a
message, JSON with three descriptors (the job, the program's input, its output); one answer each. While a program runs,
the message `kill` or the end of the socket ends it. So does memory: RLIMIT_AS bounds one process, this server's looks
bound all together. Whatever a program left running is killed before the answer.

    out  {"ready": level} or {"failed": reason}, once
    in   {"seconds", "cpu_seconds", "memory_mib", "processes", "file_mib"}
    out  {"status": exit code, or -signal; "late": killed by the clock, "cpu": seconds}

At the level `namespaces` this is process 1, whose death is the death of everything inside, and which programs can
neither signal nor trace. At the level `processes` there are only limits: see docs/verifiers.md.
"""

import array
import json
import math
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from typing import Any, NoReturn

if __name__ == "__main__":
    # -I leaves this file's place off the path; nothing of the package is needed once these are loaded.
    sys.path.append(sys.argv[2])
from megatron_urpo.reward.verifiable.code.inside import isolation, processes, program

_NAMESPACES = "namespaces"
_OPEN_FILES = 64
_NOBODY = 65534
_LOOK_SECONDS, _LOOK_FACTOR = 0.02, 10.0  # between looks at memory: at least, and as a multiple of what one costs


class Server:
    def __init__(self, level: str, socket_: socket.socket, own_user: bool) -> None:
        self._level, self._socket, self._own_user = level, socket_, own_user
        self._settings = _own_settings()

    def loop(self) -> None:
        while True:
            message, descriptors = _receive(self._socket)
            if not message:
                return
            if message == b"kill":
                continue  # crossed with the answer
            folder = "" if self._level == _NAMESPACES else tempfile.mkdtemp(prefix="megatron-urpo-program-")
            try:
                answer = self._run(json.loads(message), descriptors, folder)
            finally:
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
            if _own_settings() != self._settings:
                return  # a program of the same user changed them, and the next one would suffer for it
            self._socket.send(json.dumps(answer).encode())

    def _run(self, limits: dict[str, Any], descriptors: list[int], folder: str) -> dict[str, Any]:
        deadline = time.monotonic() + limits["seconds"]
        child = os.fork()
        if child == 0:
            self._become_program(limits, descriptors, folder)
        for descriptor in descriptors:
            os.close(descriptor)
        late = not self._wait(child, deadline, limits["memory_mib"] << 20)
        os.kill(child, signal.SIGKILL)  # it may have gone, but nobody has taken its status yet
        _, status, usage = os.wait4(child, 0)
        self._kill_all()
        code = os.waitstatus_to_exitcode(status)
        return {"status": code, "late": late, "cpu": usage.ru_utime + usage.ru_stime}

    def _wait(self, child: int, deadline: float, memory: int) -> bool:
        """Until the child ends or all that it started hold too much; False where it was late, or was not to go on."""
        ended = os.pidfd_open(child)
        pause = _LOOK_SECONDS
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.register(self._socket, select.POLLIN)
            while True:
                left = max(0.0, deadline - time.monotonic())
                ready = {descriptor for descriptor, _ in poll.poll(min(pause, left) * 1000)}
                if ready or time.monotonic() >= deadline:
                    return ended in ready
                start = time.process_time()
                if processes.hold_more(processes.descendants(), memory):
                    return True
                # Where no namespace hides the host's other processes, a look at all of them may take its time.
                pause = max(_LOOK_SECONDS, _LOOK_FACTOR * (time.process_time() - start))
        finally:
            os.close(ended)

    def _kill_all(self) -> None:
        """Everything but this process; -1 reaches all of the namespace, also what forks at this moment."""
        while True:
            if self._level == _NAMESPACES:
                _kill(-1)
            else:
                for pid in processes.children():
                    _kill(pid)
            try:
                os.wait()
            except ChildProcessError:
                return

    def _become_program(self, limits: dict[str, Any], descriptors: list[int], folder: str) -> NoReturn:
        code = 1
        try:
            os.setsid()
            job_from, given, taken = (os.dup(descriptor) for descriptor in descriptors)
            null = os.open("/dev/null", os.O_WRONLY)
            if self._level == _NAMESPACES:
                isolation.private_folder(limits["file_mib"] * 4)
            else:
                os.chdir(folder)
            self._limit(limits, folder)
            with open(job_from, "rb", closefd=False) as file:
                job = json.load(file)
            for number, descriptor in enumerate((given, taken, null)):
                os.dup2(descriptor, number)
            os.closerange(3, _OPEN_FILES * 4)
            for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXCPU):
                signal.signal(number, signal.SIG_DFL)
            sys.argv, sys.stderr = ["program"], open(2, "w", closefd=False)  # noqa: SIM115
            for name in [name for name in sys.modules if name.startswith("megatron_urpo")]:
                del sys.modules[name]
            program.perform(job)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # its exit code is all that the outside wants to know
            code = 1
        try:
            sys.stdout.flush()
        except BaseException:
            code = 1
        os._exit(code & 0xFF)

    def _limit(self, limits: dict[str, Any], folder: str) -> None:
        seconds = math.ceil(limits["cpu_seconds"])
        number = limits["processes"]
        user = None
        if self._own_user:
            user = isolation.PROGRAM_ID if self._level == _NAMESPACES else _NOBODY
            if folder:
                os.chown(folder, user, user)
        else:
            number += 2 if self._level == _NAMESPACES else 1  # server and, of namespaces, who made them: the same user
        if self._level != _NAMESPACES:
            number += processes.count_of(os.getuid() if user is None else user)
        isolation.drop_privileges(user)
        isolation.allow_ptrace()
        for which, soft, hard in (
            (resource.RLIMIT_CPU, seconds, seconds + 1),
            (resource.RLIMIT_AS, limits["memory_mib"] << 20, limits["memory_mib"] << 20),
            (resource.RLIMIT_FSIZE, limits["file_mib"] << 20, limits["file_mib"] << 20),
            (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_MEMLOCK, 0, 0),
            (resource.RLIMIT_MSGQUEUE, 0, 0),
            (resource.RLIMIT_NPROC, number, number),
        ):
            highest = resource.getrlimit(which)[1]
            if highest != resource.RLIM_INFINITY:
                soft, hard = min(soft, highest), min(hard, highest)
            resource.setrlimit(which, (soft, hard))


def _own_settings() -> list[object]:
    """What another process of the same user can change here."""
    limits: list[object] = [resource.getrlimit(which) for which in range(16)]
    return [*limits, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)]


def _receive(socket_: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    message, ancillary, _, _ = socket_.recvmsg(4096, space)
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(level: str) -> None:
    own = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if level == _NAMESPACES:
            own_user = isolation.enter_namespaces()
        else:
            isolation.adopt_orphans()
            isolation.hide_from_ptrace()
            own_user = os.geteuid() == 0 and isolation.can_become(_NOBODY)
    except OSError as error:
        own.send(json.dumps({"failed": str(error)}).encode())
        return
    own.send(json.dumps({"ready": level}).encode())
    sys.path.remove(sys.argv[2])
    Server(level, own, own_user).loop()


if __name__ == "__main__":
    main(sys.argv[1])
