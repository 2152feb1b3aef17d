"""Policies as the parts need them: one rank, with the layers that this machine has."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from check import present

from megatron_urpo.config.model import Fp8Config, ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy


@dataclass(frozen=True)
class Variant:
    spec: Literal["torch", "te"]
    dtype: Literal["bfloat16", "float32"]
    fp8: Literal["none", "hybrid"] = "none"

    @property
    def name(self) -> str:
        return f"{self.spec}, {self.dtype}" + (", fp8 hybrid tensorwise" if self.fp8 == "hybrid" else "")

    @property
    def overrides(self) -> list[str]:
        """As arguments of `megatron-urpo`."""
        return [f"model.spec={self.spec}", f"model.dtype={self.dtype}", f"fp8.format={self.fp8}"]


def variants(dtype: Literal["bfloat16", "float32"]) -> list[Variant]:
    """Transformer Engine's layers only where it imports and a GPU is there."""
    found = [Variant("torch", dtype)]
    if torch.cuda.is_available() and present("transformer_engine"):
        found.append(Variant("te", dtype))
        if dtype == "bfloat16" and torch.cuda.get_device_capability() >= (8, 9):  # the first with FP8 tensor cores
            found.append(Variant("te", dtype, "hybrid"))
    return found


@contextlib.contextmanager
def joined_policy(model: Path, variant: Variant, init: Literal["weights", "random"]) -> Iterator[Policy]:
    layout = ParallelConfig()
    config = ModelConfig(path=model, init=init, spec=variant.spec, dtype=variant.dtype)
    with joined_ranks(layout) as parallel:
        fp8 = Fp8Config(format=variant.fp8)
        yield build_policy(config, OptimizerConfig(), layout, parallel, num_steps=1000, updates_per_step=1, fp8=fp8)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
