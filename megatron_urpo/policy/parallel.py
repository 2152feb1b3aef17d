"""Process groups: how many ranks there are, which part of the model this one holds, and talk between ranks.

Tensors travel over NCCL on GPUs and gloo on CPUs. Control traffic (`from_rank0`, `any`) always goes over gloo, whose
time-out is out of reach: rank 0 may spend hours in a rollout while the others wait. That it lives, `watch.py` knows.
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
from megatron_urpo.config.launch import LaunchConfig
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.policy import platform
from megatron_urpo.policy.rendezvous import join_store, watch_ranks
from megatron_urpo.policy.watch import Watch
from megatron_urpo.protocols import RankLost, RankZeroError

P = ParamSpec("P")
T = TypeVar("T")

CONTROL_TIMEOUT = timedelta(days=7)


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
    watch: Watch | None = None

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

    @contextlib.contextmanager
    def naming_errors(self) -> Iterator[None]:
        """An error inside is told to every rank at once, before anything is cleaned up here.

        One that follows from another rank's end is replaced by RankLost, which names that rank.
        """
        try:
            yield
        except BaseException as error:
            lost = None if self.watch is None or isinstance(error, RankLost) else self.watch.explain(error)
            if lost is None:
                raise
            raise lost from error

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


def init_parallel(config: ParallelConfig, seed: int = 0, launch: LaunchConfig | None = None) -> Parallel:
    """Joins the process groups; without a launcher this process is the only rank.

    With `launch`, ranks watch each other. Raises RankLost where not all of them come.
    """
    world_size = launched_world_size()
    check_world_size(config, world_size)
    platform.install()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=config.timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    watch = None
    if "RANK" in os.environ:
        store = join_store(timedelta(seconds=(launch or LaunchConfig()).join_seconds))
        if launch is not None and world_size > 1:
            watch = watch_ranks(int(os.environ["RANK"]), world_size, launch)
        store.set_timeout(timeout)
        dist.init_process_group(
            backend, store=store, rank=int(os.environ["RANK"]), world_size=world_size, timeout=timeout
        )
    else:
        dist.init_process_group(
            backend,
            rank=0,
            world_size=1,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            timeout=timeout,
        )
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
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
        watch=watch,
    )


@contextlib.contextmanager
def joined_ranks(config: ParallelConfig, seed: int = 0, launch: LaunchConfig | None = None) -> Iterator[Parallel]:
    """`init_parallel`, and `close_parallel` on every way out. Ranks leave together where no error was raised."""
    parallel = init_parallel(config, seed, launch or LaunchConfig())
    try:
        with parallel.naming_errors():
            yield parallel
            if parallel.watch is not None:
                parallel.watch.leaving()
                parallel.barrier()
    finally:
        # The watch last: where a peer is gone, leaving a process group may hang, and then the watch ends it.
        close_parallel()
        if parallel.watch is not None:
            parallel.watch.leave()


def close_parallel() -> None:
    """Leaves the process groups, so that a process can join new ones and ends without a warning."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
