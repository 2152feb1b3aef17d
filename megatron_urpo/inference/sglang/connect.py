"""From the config to a fleet of SGLang servers."""

from collections.abc import Callable, Sequence

from megatron_urpo.config import Config
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.connect import connect_fleet
from megatron_urpo.inference.fleet.engine import FleetEngine
from megatron_urpo.inference.sglang.accept import check_info
from megatron_urpo.inference.sglang.client import SGLangClient
from megatron_urpo.inference.sglang.launch import SGLangLauncher


def connect_sglang(
    config: Config, stop_token_ids: Sequence[int], vocab_size: int, tell: Callable[[str], None]
) -> FleetEngine:
    """Servers that answer, without the policy's weights. Raises ConfigError and EngineError."""
    servers = config.rollout.sglang

    def new_client(url: str, background: BackgroundLoop) -> SGLangClient:
        return SGLangClient(
            url,
            background,
            tensor=servers.tensor,
            accept=lambda url, info: check_info(config, url, info),
            stop_token_ids=stop_token_ids,
            vocab_size=vocab_size,
            update_seconds=config.weight_sync.timeout_seconds,
        )

    def new_launcher(index: int, port: int) -> SGLangLauncher:
        return SGLangLauncher(servers, config.model.path, index, port, release_memory=config.rollout.release_memory)

    logs = config.run_dir / "servers"
    return connect_fleet("sglang", servers, logs, vocab_size, new_client, new_launcher, tell)
