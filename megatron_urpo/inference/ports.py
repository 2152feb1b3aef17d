"""Ports of this machine for servers that a run starts."""

import itertools
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from megatron_urpo.config import ConfigError
from megatron_urpo.config.engine import ServersConfig

LOOPBACK = "127.0.0.1"
PORTS = range(10000, 20000)  # from 20000 on are the blocks of jobs: scripts/slurm/common.sh
MAX_TRIED = 1000
KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose_ports(config: ServersConfig, field: str) -> list[int]:
    """One for each server of `config`, which is the section `field`.

    Raises ConfigError where one that the user chose is taken.
    """
    if config.port == 0:
        return free_ports(config.num_servers)
    ports = [config.port + index for index in range(config.num_servers)]
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise ConfigError(
                    f"{field}.port: {port} cannot be listened on ({error.strerror}); end the program that does,"
                    " give another port, or 0 for any that is free"
                ) from None
    return ports


def is_free(host: str, port: int) -> bool:
    """Whether `port` can be listened on at address `host` of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that the kernel gives to nobody who asks for any port.

    A server listens only once it has loaded its model, and again after a restart. Until then every connection and every
    gloo group of this machine could be given a port of the kernel's. Raises ConfigError where too few are free.
    """
    candidates = random.SystemRandom().sample(outside(kernel_range()), k=MAX_TRIED)
    ports = list(itertools.islice((port for port in candidates if is_free(LOOPBACK, port)), count))
    if len(ports) < count:
        raise ConfigError(f"of {MAX_TRIED} ports {len(ports)} are free, {count} are needed; ss -ltn lists who listens")
    return ports


def kernel_range() -> tuple[int, int]:
    """The first and the last port that the kernel hands out."""
    first, last = KERNEL_RANGE.read_text().split()
    return int(first), int(last)


def outside(taken: tuple[int, int]) -> Sequence[int]:
    """Of PORTS those outside `taken`; all of them where that leaves too few to choose from."""
    first, last = taken
    left = [port for port in PORTS if not first <= port <= last]
    return left if len(left) >= MAX_TRIED else PORTS
