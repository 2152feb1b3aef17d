"""A real server as a child of the tests: started with one log file, and stopped so that nothing of it stays behind."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

READY_SECONDS = 480  # a quiet machine needs 16; one with ten busy processes a core needed 200
STOP_SECONDS = 20
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Server:
    """A server that answers. `log` is everything it printed, `scratch` where it keeps its sockets."""

    url: str
    process: psutil.Popen
    log: Path
    scratch: Path

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it; empty once it is gone."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def shared_memory(self) -> set[Path]:
        """Files of shared memory that the server's processes have mapped, semaphores among them."""
        found = set()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {Path(mapped.path) for mapped in process.memory_maps()}
        return {path for path in found if path.is_relative_to(SHARED_MEMORY)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_sglang(python: Path, model: Path, folder: Path, *flags: str) -> Iterator[Server]:
    """Serves `model` on a CPU in float32 while the block runs; `folder` takes the log."""
    port = free_port()
    command = [
        str(python), "-m", "sglang.launch_server", "--model-path", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--attention-backend", "torch_native",
        "--dtype", "float32", "--max-total-tokens", "16384", "--max-running-requests", "64", "--skip-server-warmup",
        *flags,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    log = folder / "server.log"
    # Not under `folder`: the path of a Unix socket may have 107 characters.
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="sglang-") as scratch:
        process = psutil.Popen(
            command, env={**environment, "TMPDIR": scratch}, cwd=scratch, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process, log, Path(scratch))
        shared_memory: set[Path] = set()
        try:
            wait_until_ready(server)
            shared_memory |= server.shared_memory()  # now, since one that dies by itself can no longer be asked
            yield server
        finally:
            stop(server, shared_memory)


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.process.returncode}: {last_lines(server.log)}")
        # /health generates a token: it answers once the model does, not only the web server.
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=20) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not ready after {READY_SECONDS} s: {last_lines(server.log)}")
        time.sleep(0.2)


def last_lines(log: Path, num_lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def stop(server: Server, shared_memory: set[Path]) -> None:
    """Ends the server's process tree by pid and removes `shared_memory` and what else of it the processes hold.

    The first process goes first: the kernel then ends its scheduler, which asked for that, and the semaphores are
    removed by a helper that outlives them. A kill of the whole group would take that helper too. The file in which a
    scheduler publishes its load is never removed by SGLang itself.
    """
    processes = server.processes()
    left_behind = shared_memory | server.shared_memory()
    for process in processes[:1]:
        process.kill()
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    for path in left_behind:
        path.unlink(missing_ok=True)
