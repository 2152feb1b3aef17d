"""One server of a run whose servers have nodes of their own, for job scripts: started, announced, started again.

The run itself only attaches to it (`rollout.<engine>.urls`): it sees that a server has gone and, once it is back at the
same address, sends it the weights.
"""

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference.fleet.client import Launcher
from megatron_urpo.inference.ports import is_free
from megatron_urpo.inference.process import ServerProcess
from megatron_urpo.inference.sglang.launch import SGLangLauncher
from megatron_urpo.inference.vllm.launch import VLLMLauncher
from megatron_urpo.protocols import EngineError

NUM_PORTS = 18
LOOK_SECONDS = 0.5
LAUNCHERS: dict[str, Callable[..., Launcher]] = {"sglang": SGLangLauncher, "vllm": VLLMLauncher}


def serve(
    config: Config, index: int, local_index: int, host: str, first_port: int, folder: Path, tell: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or SIGUSR1; `folder/server_<index>.url` gets the address once the server answers.

    `index` counts servers of the job, `local_index` those of this machine: it chooses GPUs and port. Raises
    ConfigError, and EngineError where the server does not come up or ends more often than `max_restarts`.
    """
    engine = config.rollout.engine
    if engine not in LAUNCHERS:
        raise ConfigError(f"rollout.engine: {engine} has no servers; set it to {' or '.join(LAUNCHERS)}")
    servers: ServersConfig = config.rollout.sglang if engine == "sglang" else config.rollout.vllm
    if servers.first_gpu is None and config.launch.gpus_per_node:
        servers = servers.model_copy(update={"first_gpu": 0})
    port = _choose_port(host, first_port, local_index)
    launcher = LAUNCHERS[engine](servers, config.model.path, local_index, port, host)
    with _Told() as told:
        for _ in range(servers.max_restarts + 1):
            process = launcher.start(folder / f"server_{index}.engine.log")
            try:
                if _wait_until_ready(f"http://{host}:{port}", process, servers.ready_seconds, told):
                    _announce(folder / f"server_{index}.url", f"http://{host}:{port}")
                    tell(f"server {index} answers at http://{host}:{port}")
                while process.status is None and not told():
                    process.remember_shared_memory()
                    time.sleep(LOOK_SECONDS)
                if told():
                    return
                tell(f"server {index} ended with status {process.status}: {process.last_lines(5)}")
            finally:
                process.stop()
    raise EngineError(f"server {index} on {host} ended {servers.max_restarts + 1} times; see {process.log}")


def _choose_port(host: str, first_port: int, local_index: int) -> int:
    """Servers of one machine search from different places, so that two do not find the same port free."""
    for offset in range(NUM_PORTS):
        port = first_port + (local_index * 2 + offset) % NUM_PORTS
        if is_free(host, port):
            return port
    raise ConfigError(f"--first-port: none of {first_port} to {first_port + NUM_PORTS - 1} is free on {host}")


class _Told:
    """Whether SIGTERM or SIGUSR1 came."""

    def __init__(self) -> None:
        self._told = False

    def __enter__(self) -> "_Told":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        return self._told

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._told = True


def _wait_until_ready(url: str, process: ServerProcess, seconds: float, told: _Told) -> bool:
    deadline = time.monotonic() + seconds
    while process.status is None and not told():
        # /health generates a token: it answers once the model does, not only the web server.
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=20) as answer:
            if answer.status == 200:
                return True
        if time.monotonic() > deadline:
            raise EngineError(f"the server at {url} did not answer within {seconds:g} seconds")
        time.sleep(LOOK_SECONDS)
    return False


def _announce(path: Path, url: str) -> None:
    """Whole or not at all: the job script reads it as soon as it is there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(url)
    beside.replace(path)
