"""The command that starts one of this run's own SGLang servers."""

import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.config.checks import MEMORY_FLAGS
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference.ports import LOOPBACK, free_ports
from megatron_urpo.inference.process import ServerProcess


@dataclass(frozen=True)
class SGLangLauncher:
    """Implements `fleet.client.Launcher` for server `index` of `config`, at `host` and `port` of this machine.

    It is sent token ids and answers in token ids, so it needs no tokenizer.
    """

    config: ServersConfig
    model: Path
    index: int
    port: int
    host: str = LOOPBACK
    release_memory: bool = False

    def start(self, log: Path) -> ServerProcess:
        return ServerProcess([*self.command(), *self._meeting_port()], self.config.environment, log)

    def command(self) -> list[str]:
        config = self.config
        program = [sys.executable if word == "python" else word for word in config.command]
        flags = {
            "model-path": str(self.model.absolute()),
            "host": self.host,
            "port": str(self.port),
            "dtype": config.dtype,
            "tp-size": str(config.tensor),
        }
        if config.first_gpu is not None:
            flags["base-gpu-id"] = str(config.first_gpu + self.index * config.tensor)
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        more = {MEMORY_FLAGS["sglang"]: True} if self.release_memory else {}
        for name, value in {**more, **config.flags}.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not False:
                words += [f"--{name}", str(value)]
        return [*program, *words, "--skip-tokenizer-init", "--skip-server-warmup"]

    def _meeting_port(self) -> list[str]:
        """Where its ranks meet. SGLang would take any port, long before its first rank listens there."""
        return [] if "nccl-port" in self.config.flags else ["--nccl-port", str(free_ports(1)[0])]
