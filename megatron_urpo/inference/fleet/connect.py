"""From a section of the config to a fleet that answers, whatever program its servers run."""

from collections.abc import Callable
from pathlib import Path

from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.client import Client, Launcher
from megatron_urpo.inference.fleet.engine import FleetEngine, Seat
from megatron_urpo.inference.fleet.member import Patience
from megatron_urpo.inference.ports import LOOPBACK, choose_ports


def connect_fleet(
    name: str,
    servers: ServersConfig,
    logs: Path,
    vocab_size: int,
    new_client: Callable[[str, BackgroundLoop], Client],
    new_launcher: Callable[[int, int], Launcher],
    tell: Callable[[str], None],
) -> FleetEngine:
    """Servers that answer, without the policy's weights; `servers` is the section `rollout.<name>`.

    `new_client(url, loop)` speaks to one, `new_launcher(index, port)` starts one of this run's own. Raises ConfigError
    and EngineError.
    """
    background = BackgroundLoop(name)
    try:
        ports = [] if servers.urls else choose_ports(servers, f"rollout.{name}")
        urls = servers.urls or [f"http://{LOOPBACK}:{port}" for port in ports]
        seats = [
            Seat(
                new_client(url, background),
                None if servers.urls else new_launcher(index, ports[index]),
                logs / f"server_{index}.log",
            )
            for index, url in enumerate(urls)
        ]
        engine = FleetEngine(
            seats,
            background=background,
            patience=Patience(servers.ready_seconds),
            request_seconds=servers.request_seconds,
            max_restarts=servers.max_restarts,
            vocab_size=vocab_size,
            max_tokens_in_flight=servers.max_tokens_in_flight,
            tell=tell,
        )
    except BaseException:
        background.close()
        raise
    engine.start()
    return engine
