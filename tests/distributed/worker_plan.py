"""Ranks of test_plan: what one rank of a policy really allocates, after a first update, beside what was predicted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.planning.parameters import stage_parameters
from megatron_urpo.planning.states import states
from megatron_urpo.policy.packing import PackedBatch, TokenSequence
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from tests.distributed.launch import write_result

LAYOUTS = {
    1: [ParallelConfig()],
    2: [ParallelConfig(), ParallelConfig(tensor=2, sequence=True), ParallelConfig(pipeline=2)],
}


def main(folder: Path, *models: str) -> None:
    found: list[Any] = []
    with joined_ranks(ParallelConfig()) as joined:
        for layout in LAYOUTS[joined.world_size]:
            parallel = rearranged(joined, layout)
            for model in map(Path, models):
                if model.name == "qwen3_moe" and layout.pipeline > 1:
                    continue  # check_experts: not without a GPU
                for dtype in ("float32", "bfloat16"):
                    for distributed in (True, False):
                        case = layout.model_copy(update={"distributed_optimizer": distributed})
                        row = {"model": model.name, "dtype": dtype, **case.model_dump()}
                        found += [{**row, **part} for part in parallel.gather(compare(model, dtype, case, parallel))]
        if joined.rank == 0:
            write_result(folder, found)


def rearranged(joined: Parallel, layout: ParallelConfig) -> Parallel:
    """The same ranks at another layout: groups of ranks are cheap, a launch is not."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline)
    model_parallel_cuda_manual_seed(0)
    return replace(
        joined,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
    )


def compare(model: Path, dtype: str, layout: ParallelConfig, parallel: Parallel) -> dict[str, Any]:
    settings = ModelConfig(path=model, init="random", dtype=dtype, spec="torch")
    policy = build_policy(settings, OptimizerConfig(), layout, parallel, num_steps=2, updates_per_step=1)
    train_once(policy)
    parameters = stage_parameters(policy.part.shape, layout.tensor, layout.pipeline, parallel.pipeline_rank)
    want = states(parameters, dtype, parallel.data, layout.distributed_optimizer, parallel.data_rank)
    names = [name for name, _ in policy.part.module.named_parameters()]
    return {
        "names": [parameter.name for parameter in parameters] == names,
        "predicted": [want.weights, want.gradients, want.optimizer],
        "allocated": allocated(policy),
    }


def train_once(policy: Policy) -> None:
    def loss(
        logprobs: torch.Tensor, entropy: torch.Tensor, batch: PackedBatch
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return -logprobs.sum(), {}

    sequences = [TokenSequence([1, 2, 3, 4], 1, {}) for _ in range(4)]
    policy.forward_backward(policy.micro_batches(sequences, 64, []), loss)
    policy.step()


def allocated(policy: Policy) -> list[int]:
    """Bytes of weights, gradient buffers, and all that only the optimizer holds."""
    weights = storages(policy.part.module.parameters())
    gradients = storages(buffer.grad_data for buffer in policy.model.buffers)
    members = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    tensors = []
    for member in members:
        inner = member.optimizer
        tensors += [tensor for group in inner.param_groups for tensor in group["params"]]
        tensors += [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    optimizer = {key: size for key, size in storages(tensors).items() if key not in weights and key not in gradients}
    return [sum(part.values()) for part in (weights, gradients, optimizer)]


def storages(tensors: Any) -> dict[int, int]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
