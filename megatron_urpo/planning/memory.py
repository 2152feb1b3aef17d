"""What one GPU of the trainer must hold at once."""

from dataclasses import dataclass
from functools import lru_cache

from megatron_urpo.config import Config
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.planning.activations import Activations, activations
from megatron_urpo.planning.parameters import stage_parameters
from megatron_urpo.planning.states import DTYPE_BYTES, States, states
from megatron_urpo.policy.hf.shape import ModelShape


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank of pipeline stage `stage`, at its peak while it trains."""

    stage: int
    parameters: int
    states: States
    unsharded_optimizer: int
    """The optimizer without the distributed one, to compare."""
    reference: int
    activations: Activations
    sync_buffers: int

    @property
    def at_start(self) -> int:
        """Before the first update, when servers are started."""
        return self.states.total - self.states.moments + self.reference

    @property
    def peak(self) -> int:
        return self.states.total + self.reference + self.activations.peak + self.sync_buffers


def rank_memory(
    config: Config, shape: ModelShape, layout: ParallelConfig, data: int, stage: int, sync_buffers: int, padding: float
) -> RankMemory:
    """Of the rank with the most to hold in a stage; `sync_buffers` are rank 0's."""
    dtype, cap = config.model.dtype, config.loss.max_tokens_per_micro_batch
    held, sharded, whole = _states(shape, layout.tensor, layout.pipeline, data, stage, dtype)
    return RankMemory(
        stage=stage,
        parameters=held,
        states=sharded if layout.distributed_optimizer else whole,
        unsharded_optimizer=whole.optimizer,
        reference=held * DTYPE_BYTES[dtype] if config.loss.kl_coefficient else 0,
        activations=activations(shape, layout, dtype, cap, cap, stage, padding),
        sync_buffers=sync_buffers if stage == 0 else 0,
    )


@lru_cache(maxsize=256)
def _states(
    shape: ModelShape, tensor: int, pipeline: int, data: int, stage: int, dtype: str
) -> tuple[int, States, States]:
    """Parameters, and what they take with the distributed optimizer and without.

    Padding lies between and behind parameters, so the first data-parallel rank's part is as full as any.
    """
    parameters = stage_parameters(shape, tensor, pipeline, stage)
    return (
        sum(parameter.size for parameter in parameters),
        states(parameters, dtype, data, distributed=True),
        states(parameters, dtype, data, distributed=False),
    )


def stages_to_look_at(pipeline: int) -> list[int]:
    """Those between the second and the last hold less than the second: fewer micro-batches are under way."""
    return sorted({0, min(1, pipeline - 1), pipeline - 1})
