"""The command that starts one of this run's own SGLang servers."""

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.config import ConfigError
from megatron_urpo.config.schema import ServersConfig
from megatron_urpo.inference.process import ServerProcess

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class SGLangLauncher:
    """Implements `fleet.client.Launcher` for server `index` of `config`, which listens on `port` of this machine.

    It is sent token ids and answers in token ids, so it needs no tokenizer.
    """

    config: ServersConfig
    model: Path
    index: int
    port: int

    def start(self, log: Path) -> ServerProcess:
        return ServerProcess(self.command(), self.config.environment, log)

    def command(self) -> list[str]:
        config = self.config
        program = [sys.executable if word == "python" else word for word in config.command]
        flags = {
            "model-path": str(self.model.absolute()),
            "host": LOOPBACK,
            "port": str(self.port),
            "dtype": config.dtype,
            "tp-size": str(config.tensor),
        }
        if config.first_gpu is not None:
            flags["base-gpu-id"] = str(config.first_gpu + self.index * config.tensor)
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        for name, value in config.flags.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not False:
                words += [f"--{name}", str(value)]
        return [*program, *words, "--skip-tokenizer-init", "--skip-server-warmup"]


def choose_ports(config: ServersConfig) -> list[int]:
    """One for each server. Raises ConfigError where one that the user chose is taken."""
    if config.port == 0:
        return _free_ports(config.num_servers)
    ports = [config.port + index for index in range(config.num_servers)]
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise ConfigError(
                    f"rollout.sglang.port: {port} cannot be listened on ({error.strerror}); end the program that does,"
                    " give another port, or 0 for any that is free"
                ) from None
    return ports


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((LOOPBACK, 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
