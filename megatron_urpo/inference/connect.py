"""From the config to a running engine."""

from collections.abc import Callable, Sequence

import torch

from megatron_urpo.config import Config
from megatron_urpo.inference.embedded import EmbeddedEngine
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.inference.sglang import accept as sglang
from megatron_urpo.inference.sglang.connect import connect_sglang
from megatron_urpo.inference.vllm import accept as vllm
from megatron_urpo.inference.vllm.connect import connect_vllm


def connect(
    config: Config,
    stop_token_ids: Sequence[int],
    vocab_size: int,
    tell: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> EmbeddedEngine | FleetEngine:
    """The engine that `config.rollout.engine` names; it has no weights before the first update.

    `tell` gets a line for everything that happens to a server; `stopping` gives up what an engine in this process
    writes. Raises ConfigError and EngineError.
    """
    if config.rollout.engine == "sglang":
        return connect_sglang(config, stop_token_ids, vocab_size, tell)
    if config.rollout.engine == "vllm":
        return connect_vllm(config, stop_token_ids, vocab_size, tell)
    embedded = config.rollout.embedded
    on_gpu = torch.cuda.is_available()
    return EmbeddedEngine(
        config.model.path,
        stop_token_ids=stop_token_ids,
        dtype={"bfloat16": torch.bfloat16, "float32": torch.float32}[embedded.dtype],
        device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        max_batch_tokens=embedded.max_batch_tokens,
        stopping=stopping,
    )


def check_engine(config: Config, vocab_size: int) -> None:
    """Raises ConfigError for what can be known to be wrong of the engine before anything is started."""
    if config.rollout.engine == "sglang":
        sglang.check_urls(config, vocab_size)
    if config.rollout.engine == "vllm":
        vllm.check_urls(config, vocab_size)
