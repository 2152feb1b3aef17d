"""From the config to a fleet of vLLM servers."""

from collections.abc import Callable, Sequence

from megatron_urpo.config import Config
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.connect import connect_fleet
from megatron_urpo.inference.fleet.engine import FleetEngine
from megatron_urpo.inference.vllm.accept import check_info
from megatron_urpo.inference.vllm.client import VLLMClient
from megatron_urpo.inference.vllm.launch import VLLMLauncher


def connect_vllm(
    config: Config, stop_token_ids: Sequence[int], vocab_size: int, tell: Callable[[str], None]
) -> FleetEngine:
    """Servers that answer, without the policy's weights. Raises ConfigError and EngineError."""
    servers = config.rollout.vllm

    def new_client(url: str, background: BackgroundLoop) -> VLLMClient:
        return VLLMClient(
            url,
            background,
            tensor=servers.tensor,
            accept=lambda url, info: check_info(config, url, info),
            stop_token_ids=stop_token_ids,
            vocab_size=vocab_size,
            update_seconds=config.weight_sync.timeout_seconds,
        )

    def new_launcher(index: int, port: int) -> VLLMLauncher:
        return VLLMLauncher(servers, config.model.path, index, port, release_memory=config.rollout.release_memory)

    logs = config.run_dir / "servers"
    return connect_fleet("vllm", servers, logs, vocab_size, new_client, new_launcher, tell)
