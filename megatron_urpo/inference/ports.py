"""Ports of this machine for servers that a run starts."""

import socket

from megatron_urpo.config import ConfigError
from megatron_urpo.config.engine import ServersConfig

LOOPBACK = "127.0.0.1"


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
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((LOOPBACK, 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
