"""Process groups: how many ranks there are, which part of the model this one holds, and talk between ranks.

Tensors travel over NCCL on GPUs and gloo on CPUs. Control traffic (`from_rank0`, `any`) always goes over gloo, with a
time-out of its own: rank 0 may spend an hour in a rollout while the others wait.
"""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_urpo.config import ConfigError
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.policy import platform
from megatron_urpo.protocols import RankZeroError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """This rank's place. Sizes: `tensor` x `pipeline` x `data` = `world_size`."""

    rank: int
    world_size: int
    tensor: int
    pipeline: int
    data: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline - 1

    def from_rank0(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` runs on rank 0; every rank gets its result, or an exception.

        Rank 0 raises its own exception again; the others raise RankZeroError with its traceback.
        """
        message: list[Any] = [None]
        error: BaseException | None = None
        if self.rank == 0:
            try:
                message = [("result", function(*args, **kwargs))]
            except BaseException as raised:  # raised again below, once the others know
                error = raised
                message = [("error", traceback.format_exc())]
        if self.world_size > 1:
            dist.broadcast_object_list(message, src=0, group=self.control)
        if error is not None:
            raise error
        kind, value = message[0]
        if kind == "error":
            raise RankZeroError(f"rank 0 failed:\n{value}")
        result: T = value
        return result

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on at least one rank."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in the order of ranks, on every rank. For small objects: it is pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)


def launched_world_size() -> int:
    """Ranks of this job as torchrun or srun announced them; 1 where nobody did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_world_size(config: ParallelConfig, world_size: int) -> None:
    """Raises ConfigError when the ranks cannot be arranged as tensor x pipeline x data."""
    model_parallel = config.tensor * config.pipeline
    if world_size % model_parallel:
        raise ConfigError(
            f"parallel: tensor {config.tensor} x pipeline {config.pipeline} = {model_parallel} ranks hold one copy of"
            f" the model, and {world_size} ranks were started ({world_size} / {model_parallel} ="
            f" {world_size / model_parallel:.2f} copies); start a multiple of {model_parallel} ranks or"
            " change the sizes"
        )


def init_parallel(config: ParallelConfig, seed: int = 0) -> Parallel:
    """Joins the process groups; without a launcher this process is the only rank."""
    world_size = launched_world_size()
    check_world_size(config, world_size)
    platform.install()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=config.timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend,
            rank=0,
            world_size=1,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            timeout=timeout,
        )
    control = dist.new_group(backend="gloo", timeout=timeout)
    parallel_state.initialize_model_parallel(config.tensor, config.pipeline)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    return Parallel(
        rank=dist.get_rank(),
        world_size=world_size,
        tensor=config.tensor,
        pipeline=config.pipeline,
        data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        device=device,
        control=control,
    )


@contextlib.contextmanager
def joined_ranks(config: ParallelConfig, seed: int = 0) -> Iterator[Parallel]:
    """`init_parallel`, and `close_parallel` on every way out."""
    parallel = init_parallel(config, seed)
    try:
        yield parallel
    finally:
        close_parallel()


def close_parallel() -> None:
    """Leaves the process groups, so that a process can join new ones and ends without a warning."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
