"""The real engine over scripted servers."""

from collections.abc import Callable, Sequence
from typing import Any

from megatron_urpo.config import Config
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.inference.sglang.connect import connect_sglang
from tests.support.rollout import make_config


def scripted_config(urls: Sequence[str], servers: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """`servers`: of `rollout.sglang`; a section's values are merged over those of `make_config`."""
    rollout = {**sections.pop("rollout", {}), "engine": "sglang", "sglang": {"urls": list(urls), **servers}}
    return make_config(rollout={"completions_per_prompt": 2, "max_new_tokens": 16, **rollout}, **sections)


def connect_scripted(
    config: Config, stop_token_ids: Sequence[int], vocab_size: int, tell: Callable[[str], None] = lambda line: None
) -> FleetEngine:
    """An engine that serves version 0; to be closed."""
    engine = connect_sglang(config, stop_token_ids, vocab_size, tell)
    stamp(engine, 0)
    return engine


def stamp(engine: FleetEngine, version: int) -> None:
    """An update without tensors: from now on every server serves `version`."""
    servers = engine.updatable()
    for server in servers:
        server.begin_update()
        server.end_update(version)
    engine.updated(servers, version)
