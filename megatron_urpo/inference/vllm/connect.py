"""From the config to a fleet of vLLM servers."""

from collections.abc import Callable, Sequence

from megatron_urpo.config import Config
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.engine import FleetEngine, Seat
from megatron_urpo.inference.fleet.member import Patience
from megatron_urpo.inference.ports import LOOPBACK, choose_ports
from megatron_urpo.inference.vllm.accept import check_info
from megatron_urpo.inference.vllm.client import VLLMClient
from megatron_urpo.inference.vllm.launch import VLLMLauncher


def connect_vllm(
    config: Config, stop_token_ids: Sequence[int], vocab_size: int, tell: Callable[[str], None]
) -> FleetEngine:
    """Servers that answer, without the policy's weights. Raises ConfigError and EngineError."""
    servers = config.rollout.vllm
    background = BackgroundLoop("vllm")
    try:
        ports = [] if servers.urls else choose_ports(servers, "rollout.vllm")
        urls = servers.urls or [f"http://{LOOPBACK}:{port}" for port in ports]
        seats = []
        for index, url in enumerate(urls):
            client = VLLMClient(
                url,
                background,
                tensor=servers.tensor,
                accept=lambda url, info: check_info(config, url, info),
                stop_token_ids=stop_token_ids,
                vocab_size=vocab_size,
                update_seconds=config.weight_sync.timeout_seconds,
            )
            launcher = None if servers.urls else VLLMLauncher(servers, config.model.path, index, ports[index])
            seats.append(Seat(client, launcher, config.run_dir / "servers" / f"server_{index}.log"))
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
