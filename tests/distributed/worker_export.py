"""Ranks of test_export: digests of every exported tensor, as loaded and after optimizer steps on known gradients.

The gradients are drawn for the whole tensor and cut up by the name table, so that they are the same bits at every
layout, which those of a backward pass, summed in another order, are not.
"""

import hashlib
from pathlib import Path

import torch

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, weight_entries
from megatron_urpo.policy.hf.tensors import join, shard
from megatron_urpo.policy.parallel import close_parallel, init_parallel
from megatron_urpo.policy.policy import Policy, build_policy
from tests.distributed.launch import write_result
from tests.support.models import make_model

NUM_STEPS = 2


def main(folder: Path, tensor: int, pipeline: int, distributed_optimizer: bool) -> None:
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline, distributed_optimizer=distributed_optimizer)
    parallel = init_parallel(layout, 0)
    result = {}
    for tied in (False, True):
        path = folder / f"tied-{tied}"
        parallel.from_rank0(lambda path=path, tied=tied: make_model(path, "qwen2", tied=tied) and None)
        settings = OptimizerConfig(lr=1e-3, clip_grad=0.0, schedule="constant")
        policy = build_policy(ModelConfig(path=path, dtype="float32"), settings, layout, parallel, 10, 1)
        loaded = digests(policy)
        for step in range(NUM_STEPS):
            policy.model.zero_grad_buffer()
            set_gradients(policy, tied, step)
            policy.step()
        result[f"tied {tied}"] = {"loaded": loaded, "trained": digests(policy)}
    if parallel.rank == 0:
        write_result(folder, result)
    close_parallel()


def set_gradients(policy: Policy, tied: bool, step: int) -> None:
    part, parallel = policy.part, policy.parallel
    for entry in weight_entries(part.shape, part.spec):
        names = [part.local_name(entry)]
        if tied and entry.megatron.startswith("embedding.") and parallel.pipeline > 1 and parallel.is_last_stage:
            names = ["output_layer.weight"]  # the last stage's copy of the embedding
        for name in names:
            if name is not None:
                whole = gradient(entry, policy, step)
                part.parameters[name].main_grad.copy_(shard(entry, whole, parallel.tensor_rank, parallel.tensor))


def gradient(entry: WeightEntry, policy: Policy, step: int) -> torch.Tensor:
    seed = hashlib.sha256(f"{entry.megatron} {step}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    shapes = hf_shapes(policy.part.shape)
    return join(entry, [torch.randn(shapes[name], generator=generator) for name in entry.hf], policy.part.shape)


def digests(policy: Policy) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in policy.export()}
