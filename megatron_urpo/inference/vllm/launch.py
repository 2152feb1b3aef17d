"""How one of this run's own vLLM servers is started and ended."""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from megatron_urpo.config.checks import MEMORY_FLAGS
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference.ports import LOOPBACK, free_ports
from megatron_urpo.inference.process import ServerProcess

EXTENSION = Path(__file__).parent / "extension"
EXTENSION_CLASS = "megatron_urpo_worker.WeightUpdates"
END_SECONDS = 15.0


class VLLMProcess(ServerProcess):
    """vLLM's other processes follow the first where it was asked to end, in three seconds; not where it was killed."""

    def stop(self) -> None:
        """Ends its process tree and removes its shared memory."""
        processes = self._tree()
        self.remember_shared_memory()
        for process in processes[:1]:
            process.terminate()
        _, left = psutil.wait_procs(processes, timeout=END_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        super().stop()


@dataclass(frozen=True)
class VLLMLauncher:
    """Implements `fleet.client.Launcher` for server `index` of `config`, at `host` and `port` of this machine."""

    config: ServersConfig
    model: Path
    index: int
    port: int
    host: str = LOOPBACK
    release_memory: bool = False

    def start(self, log: Path) -> ServerProcess:
        # The first of the ports at which its processes meet. It would take any, long before they listen there.
        return VLLMProcess(self.command(), {"VLLM_PORT": str(free_ports(1)[0]), **self.environment()}, log)

    def command(self) -> list[str]:
        config = self.config
        program = [sys.executable if word == "python" else word for word in config.command]
        flags = {
            "model": str(self.model.absolute()),
            "host": self.host,
            "port": str(self.port),
            "dtype": config.dtype,
            "tensor-parallel-size": str(config.tensor),
            "logprobs-mode": "processed_logprobs",  # else those before the temperature
            "worker-extension-cls": EXTENSION_CLASS,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        more = {MEMORY_FLAGS["vllm"]: True} if self.release_memory else {}
        for name, value in {**more, **config.flags}.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not False:
                words += [f"--{name}", str(value)]
        return [*program, *words, "--tokens-only"]

    def environment(self) -> dict[str, str]:
        """The user's, what weight updates need, and the server's own GPUs."""
        given = self.config.environment
        paths = [str(EXTENSION), given.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")]
        found = {**given, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "VLLM_SERVER_DEV_MODE": "1"}
        if self.config.first_gpu is not None:
            first = self.config.first_gpu + self.index * self.config.tensor
            found["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + i) for i in range(self.config.tensor))
        return found
