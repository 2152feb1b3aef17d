"""The supported model families, a file each. A new one is a file and a line here; docs/checkpoints.md shows how."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.entries import LayerWeight
from megatron_urpo.policy.hf.families import llama, qwen2, qwen3, qwen3_moe


@dataclass(frozen=True)
class Family:
    shape: Callable[[dict[str, Any]], ModelShape]
    """From the parsed config.json. Raises ConfigError, and KeyError for a key that is missing."""
    layer: Callable[[ModelShape, str], Iterator[LayerWeight]]
    """The weights of one layer, in the order of use, under the names of a spec."""


FAMILIES = {
    "qwen2": Family(qwen2.shape, qwen2.layer),
    "qwen3": Family(qwen3.shape, qwen3.layer),
    "llama": Family(llama.shape, llama.layer),
    "qwen3_moe": Family(qwen3_moe.shape, qwen3_moe.layer),
}
"""By `model_type` of config.json."""
