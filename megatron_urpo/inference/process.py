"""A server as a child process: started with one log file, and ended by pid so that nothing of it stays behind."""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

STOP_SECONDS = 20.0
SHARED_MEMORY = Path("/dev/shm")
SHARED_FILE = re.compile(rf" ({SHARED_MEMORY}/\S+)$", re.MULTILINE)
# Waits for a word or, where this process dies without one, the end of its input; then ends the server as `stop` does.
GUARD = 'read -r line && exit; kill -9 "$0"; sleep 3; kill -9 "-$0"'
LAUNCHER_VARIABLE = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)"
)


class ServerProcess:
    """Runs from its creation until `stop`, or until this process dies however it dies.

    `log` gets everything that it prints. Its signals are its own: Ctrl-C at the terminal is for this process to handle.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        # Not beside the log: the path of a Unix socket may have 107 characters, and servers keep sockets in TMPDIR.
        self._scratch = tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = psutil.Popen(
                list(command),
                env={**_own_environment(), **environment, "TMPDIR": self._scratch.name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # nobody who reads this process's output has to wait for the guard
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._shared_memory: set[Path] = set()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def status(self) -> int | None:
        """None while it runs, then its exit status; below 0 the number of the signal that ended it."""
        status: int | None = self._process.poll()
        return status

    def remember_shared_memory(self) -> None:
        """To be called now and then while it runs well: one that was killed can no longer be asked what to remove."""
        for process in self._tree():
            with contextlib.suppress(psutil.Error, OSError):
                # psutil reads a longer file, with the size of every page, which takes fifty times as long.
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self._shared_memory |= {Path(path) for path in SHARED_FILE.findall(maps)}

    def last_lines(self, count: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """Ends its process tree and removes its shared memory; blocks for about two seconds.

        The first process goes first and the others follow by themselves: a helper of theirs, which a kill of the whole
        group would take too, removes their semaphores. What has not followed is killed.
        """
        processes = self._tree()
        self.remember_shared_memory()
        for process in processes[:1]:
            process.kill()
        _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        self._process.poll()
        self._dismiss_guard()
        for path in self._shared_memory:
            path.unlink(missing_ok=True)
        self._scratch.cleanup()

    def _dismiss_guard(self) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has gone already
            self._guard.stdin.write("done\n")
            self._guard.stdin.close()
        self._guard.wait()

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _own_environment() -> dict[str, str]:
    """Without what a launcher of ranks told this process: a server that read it would look for those ranks."""
    return {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLE.fullmatch(name)}
