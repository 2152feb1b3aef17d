"""Ranks of test_layout_table: trains every row of one shape of ranks and writes what came out, as whole tensors.

For each row, FOLDER/<row>.safetensors holds `grad/<step>/<Hugging Face name>` for every optimizer step and
`weight/<Hugging Face name>` after the last, both put together from all ranks.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed.param_and_grad_buffer import shard_buffer
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from safetensors.torch import save_file
from torch import Tensor

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.export import export_weights
from megatron_urpo.policy.hf.table import weight_entries
from megatron_urpo.policy.model import tied_output_copy
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import update
from megatron_urpo.types import Sample
from tests.distributed.launch import write_result


class RecordingPolicy(Policy):
    """Keeps the gradient that each step is about to apply, and how far ranks that hold the same part of it differ."""

    def record(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.replica_gap = 0.0

    def step(self) -> float:
        gather_sharded_gradients(self)
        local = {name: parameter.main_grad for name, parameter in self.part.parameters.items()}
        # The export reads whatever tensors it finds under the parameters' names: here, their gradients.
        part = copy.copy(self.part)
        part.parameters = local
        self.gradients.append({name: tensor.clone() for name, tensor in export_weights(part, self.parallel)})
        self.replica_gap = max(self.replica_gap, replica_gap(self, local))
        return super().step()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    result = {}
    with joined_ranks(ParallelConfig(tensor=job["tensor"], pipeline=job["pipeline"])) as parallel:
        for name, row in job["rows"].items():
            result[name] = train_row(folder / f"{name}.safetensors", row, job["optimizer"], parallel)
    if parallel.rank == 0:
        write_result(folder, result)


def train_row(target: Path, row: dict[str, Any], optimizer: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    model = ModelConfig(path=row["model"], dtype="float32")
    samples = read_samples(Path(row["model"]) / "samples.json")
    loss = LossConfig(**row["loss"])
    layout = ParallelConfig(**row["layout"])
    updates = row["updates"]
    built = build_policy(
        model, OptimizerConfig(**optimizer), layout, parallel, updates, 1, with_reference=loss.kl_coefficient > 0
    )
    policy = RecordingPolicy(**{field.name: getattr(built, field.name) for field in fields(built)})
    policy.record()
    metrics = [update(policy, samples, loss) for _ in range(updates)]
    weights = {f"weight/{name}": tensor.clone() for name, tensor in policy.export()}
    gap = max(policy.replica_gap, replica_gap(policy, dict(policy.part.parameters)))
    if parallel.rank == 0:
        gradients = {f"grad/{k}/{name}": g for k, step in enumerate(policy.gradients) for name, g in step.items()}
        save_file({name: tensor.contiguous() for name, tensor in {**weights, **gradients}.items()}, target)
    return {"metrics": metrics, "replica_gap": gap}


def read_samples(file: Path) -> list[Sample]:
    rows = json.loads(file.read_text())
    return [Sample(**{key: tuple(x) if isinstance(x, list) else x for key, x in row.items()}) for row in rows]


def gather_sharded_gradients(policy: Policy) -> None:
    """With the distributed optimizer a data-parallel rank owns the sum of its shard of each bucket, and no more.

    What lies in the rest of its buffer is its own unsummed share, which no one reads. The shards are gathered over it,
    so that every `main_grad` is whole; the shard that the optimizer goes on with keeps its values.
    """
    if not policy.model.ddp_config.use_distributed_optimizer or policy.parallel.data == 1:
        return
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for buffer in policy.model.buffers:
        for bucket in buffer.buckets:
            mine = shard_buffer(bucket.grad_data, policy.parallel.data)[policy.parallel.data_rank].clone()
            dist.all_gather_into_tensor(bucket.grad_data, mine, group=group)


def replica_gap(policy: Policy, local: dict[str, Tensor]) -> float:
    """The largest difference between ranks that hold the same numbers, relative to the tensor's largest number.

    Those are data-parallel ranks, tensor-parallel ranks for replicated weights, and with tied embeddings the first and
    the last pipeline stage. The export reads one of them and would not see it if another had drifted away.
    """
    kinds = {entry.megatron: entry.kind for entry in weight_entries(policy.part.shape, policy.part.spec)}
    offset = get_transformer_layer_offset(policy.part.config)
    held: list[tuple[tuple[str, int], Tensor]] = []
    for name, tensor in local.items():
        if name.startswith("decoder.layers."):
            _, _, layer, rest = name.split(".", 3)
            name = f"decoder.layers.{int(layer) + offset}.{rest}"
        if name in kinds:
            shard = 0 if kinds[name] == "replicated" else policy.parallel.tensor_rank
            held.append(((name, shard), tensor.detach()))
    if tied_output_copy(policy.part) is not None:
        held.append((("embedding.word_embeddings.weight", policy.parallel.tensor_rank), local["output_layer.weight"]))
    return largest_gap(policy.parallel.gather(held))


def largest_gap(everywhere: Sequence[Sequence[tuple[tuple[str, int], Tensor]]]) -> float:
    first: dict[tuple[str, int], Tensor] = {}
    gaps = [torch.zeros(())]
    for held in everywhere:
        for key, tensor in held:
            other = first.setdefault(key, tensor)
            gaps.append((tensor - other).abs().max() / other.abs().max())
    return float(torch.stack(gaps).max())  # nan where there is one
