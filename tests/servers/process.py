"""A real server as a child of the tests, started and stopped as a run starts and stops its own."""

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference.ports import choose_ports
from megatron_urpo.inference.process import SHARED_MEMORY, ServerProcess
from megatron_urpo.inference.sglang.launch import SGLangLauncher

READY_SECONDS = 480  # a quiet machine needs 16; one with ten busy processes a core needed 200
CPU_FLAGS: dict[str, bool | int | float | str] = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "max-total-tokens": 16384,
    "max-running-requests": 64,
    "sleep-on-idle": True,  # otherwise each server keeps a whole core busy with waiting
}
CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: ServerProcess

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it; empty once it is gone."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def shared_memory(self) -> set[Path]:
        """Files of shared memory that the server's processes have mapped, semaphores among them."""
        found = set()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {Path(mapped.path) for mapped in process.memory_maps()}
        return {path for path in found if path.is_relative_to(SHARED_MEMORY)}


def servers_config(python: Path, **values: object) -> ServersConfig:
    """SGLang on a CPU in float32."""
    given = {
        "command": (str(python), "-m", "sglang.launch_server"),
        "dtype": "float32",
        "flags": CPU_FLAGS,
        "environment": CPU_ENVIRONMENT,
        "ready_seconds": READY_SECONDS,
    }
    return ServersConfig.model_validate({**given, **values})


@contextlib.contextmanager
def run_sglang(python: Path, model: Path, folder: Path, **flags: object) -> Iterator[Server]:
    """Serves `model` while the block runs; `folder` takes the log."""
    with start_sglang(python, model, folder, **flags) as server:
        wait_until_ready(server)
        yield server


@contextlib.contextmanager
def start_sglang(python: Path, model: Path, folder: Path, **flags: object) -> Iterator[Server]:
    """The same without waiting, so that several start side by side."""
    config = servers_config(python, flags={**CPU_FLAGS, **flags})
    (port,) = choose_ports(config, "rollout.sglang")
    process = SGLangLauncher(config, model, 0, port).start(folder / "server.log")
    try:
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.stop()


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if server.process.status is not None:
            raise RuntimeError(f"the server ended with status {server.process.status}: {server.process.last_lines()}")
        # /health generates a token: it answers once the model does, not only the web server.
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=20) as answer:
            if answer.status == 200:
                server.process.remember_shared_memory()
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not ready after {READY_SECONDS} s: {server.process.last_lines()}")
        time.sleep(0.2)
