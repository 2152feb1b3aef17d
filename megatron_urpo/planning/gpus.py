"""Kinds of GPUs and what they hold.

`memory` is what nvidia-smi shows as total, in bytes; a node is the usual one of its kind, eight GPUs joined by NVLink.
"""

from dataclasses import dataclass

from megatron_urpo.config import ConfigError

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    per_node: int = 8


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40960 * MIB),
        Gpu("a100", 81920 * MIB),
        Gpu("h100", 81559 * MIB),
        Gpu("h200", 143771 * MIB),
        Gpu("b200", 183359 * MIB),
    )
}

RESERVE = 4 * GIB
"""Of each GPU, an assumption: CUDA's context and libraries, NCCL's buffers, gaps between the allocator's blocks."""


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError for a kind that is not listed."""
    if name not in GPUS:
        raise ConfigError(f"--gpu: {name!r} is not known; use one of {', '.join(GPUS)}")
    return GPUS[name]
