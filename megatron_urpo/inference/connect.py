"""From the config to a running engine."""

from collections.abc import Sequence

import torch

from megatron_urpo.config import Config
from megatron_urpo.inference.embedded import EmbeddedEngine
from megatron_urpo.protocols import Engine


def connect(config: Config, stop_token_ids: Sequence[int]) -> Engine:
    """The engine that `config.rollout.engine` names; it has no weights before the first `update_weights`."""
    embedded = config.rollout.embedded
    on_gpu = torch.cuda.is_available()
    return EmbeddedEngine(
        config.model.path,
        stop_token_ids=stop_token_ids,
        dtype={"bfloat16": torch.bfloat16, "float32": torch.float32}[embedded.dtype],
        device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        max_batch_tokens=embedded.max_batch_tokens,
    )
