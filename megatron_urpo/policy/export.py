"""A sharded policy as a stream of whole Hugging Face tensors on rank 0, one weight at a time."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_urpo.policy.hf.table import weight_entries
from megatron_urpo.policy.hf.tensors import split, unshard
from megatron_urpo.policy.model import ModelPart
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.weights.shards import stage_of


@torch.no_grad()
def export_weights(part: ModelPart, parallel: Parallel) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) on rank 0, nothing elsewhere. Collective: every rank iterates to the end.

    A weight is gathered within its tensor-parallel group and, from a later pipeline stage, sent to rank 0;
    data-parallel replicas send nothing. At most one whole weight is held at a time, and a tied one is sent once.
    """
    stages = dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())
    owners = _owning_stages(part, parallel)
    for entry, stage in zip(weight_entries(part.shape, part.spec), owners, strict=True):
        whole: Tensor | None = None
        if stage == parallel.pipeline_rank and parallel.data_rank == 0:
            name = part.local_name(entry)
            assert name is not None
            local = part.parameters[name].detach()
            shards = [local]
            if parallel.tensor > 1 and entry.kind != "replicated":
                shards = [torch.empty_like(local) for _ in range(parallel.tensor)]
                dist.all_gather(shards, local.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
            whole = unshard(entry, shards)
        if stage != 0 and parallel.tensor_rank == 0 and parallel.data_rank == 0:
            if parallel.pipeline_rank == stage:
                assert whole is not None
                _send(whole.contiguous(), stages[0])
            elif parallel.pipeline_rank == 0:
                whole = _receive(stages[stage], part, parallel)
        if parallel.rank == 0:
            assert whole is not None
            yield from zip(entry.hf, split(entry, whole, part.shape), strict=True)


def _owning_stages(part: ModelPart, parallel: Parallel) -> list[int]:
    """For each weight the pipeline stage that holds it."""
    return [stage_of(entry, part.shape, parallel.pipeline) for entry in weight_entries(part.shape, part.spec)]


def _send(tensor: Tensor, rank: int) -> None:
    shape = torch.tensor([tensor.dim(), *tensor.shape, *[0] * (3 - tensor.dim())], device=tensor.device)
    dist.send(shape, rank)
    dist.send(tensor, rank)


def _receive(rank: int, part: ModelPart, parallel: Parallel) -> Tensor:
    shape = torch.empty(4, dtype=torch.long, device=parallel.device)
    dist.recv(shape, rank)
    dims, *sizes = shape.tolist()
    tensor = torch.empty(sizes[:dims], dtype=part.config.params_dtype, device=parallel.device)
    dist.recv(tensor, rank)
    return tensor
