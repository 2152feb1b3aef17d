"""Ranks of test_checkpoints: every layout reads a converted checkpoint, and shards are what its ranks hold."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.conversion.convert import Layout, hf_to_megatron, megatron_to_hf
from megatron_urpo.conversion.verify import verify
from megatron_urpo.policy.checkpoint import save_policy
from megatron_urpo.policy.fp8 import NO_FP8
from megatron_urpo.policy.hf.table import padded_vocab_size
from megatron_urpo.policy.model import transformer_config
from megatron_urpo.policy.parallel import Parallel, close_parallel, init_parallel
from megatron_urpo.policy.policy import Policy, build_policy
from tests.distributed.launch import write_result
from tests.distributed.worker_parity import batches, last_stage, truth
from tests.support.models import make_model

LAYOUTS = ((4, 1), (2, 2), (2, 1), (1, 2))
ROWS = [[[(7 * i + j) % 127 for i in range(n)] for j, n in enumerate((9, 30))]]


def main(folder: Path) -> None:
    result: dict[str, Any] = {}
    first = init_parallel(ParallelConfig(tensor=LAYOUTS[0][0]), 0)
    for tensor, pipeline in LAYOUTS:
        layout = ParallelConfig(tensor=tensor, pipeline=pipeline, sequence=tensor > 1)
        parallel = rearranged(first, layout)
        for family in ("qwen3", "qwen2"):
            found = check(folder / family, family, layout, parallel)
            if (tensor, pipeline, family) == (2, 2, "qwen3"):
                found["saved"] = saved(folder / family, layout, parallel)
            result[f"{family} {tensor}x{pipeline}"] = found
        if (tensor, pipeline) == (2, 1):
            result["qwen3_moe 2x1"] = check(folder / "moe", "qwen3_moe", layout, parallel)
    if first.rank == 0:
        write_result(folder, result)
    close_parallel()


def rearranged(parallel: Parallel, layout: ParallelConfig) -> Parallel:
    """The same ranks at another layout: groups of ranks are cheap, a launch is not."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline)
    model_parallel_cuda_manual_seed(0)
    return dataclasses.replace(
        parallel,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
    )


def check(path: Path, family: str, layout: ParallelConfig, parallel: Parallel) -> dict[str, Any]:
    shards = path / f"shards-{layout.tensor}-{layout.pipeline}"
    parallel.from_rank0(convert, path, shards, family, layout)
    policy = load(path / "megatron", layout, parallel)
    exported = {name: tensor.clone() for name, tensor in policy.export()}
    from_shards = dict(load(shards, layout, parallel).export())
    mine = load_file(shards / "weights" / f"tp_{parallel.tensor_rank}_pp_{parallel.pipeline_rank}.safetensors")
    held = {name: parameter.detach() for name, parameter in policy.part.parameters.items()}
    same = mine.keys() == held.keys() and all(torch.equal(mine[name], held[name]) for name in mine)
    logprobs = parallel.gather(policy.logprobs(batches(policy, ROWS)))
    found = {"shards": all(parallel.gather(same))}
    if (layout.tensor, layout.pipeline) == (2, 2) or family == "qwen3_moe":
        stock = loaded_by_megatron(path / "megatron" / "weights", policy, layout)
        same = stock.keys() == held.keys() and all(torch.equal(stock[name], held[name]) for name in held)
        found["by megatron-core"] = all(parallel.gather(same))
    if parallel.rank == 0:
        original = load_file(path / "hf" / "model.safetensors")
        model = AutoModelForCausalLM.from_pretrained(path / "hf", dtype=torch.float32).eval()
        pairs = zip(last_stage(logprobs), truth(model, ROWS), strict=True)
        found |= {"gap": max((got.double() - want).abs().max().item() for got, want in pairs)}
        for name, weights in (("exported", exported), ("from shards", from_shards)):
            found[name] = weights.keys() == original.keys() and all(
                torch.equal(weights[k], original[k]) for k in weights
            )
    return found


def loaded_by_megatron(folder: Path, policy: Policy, layout: ParallelConfig) -> dict[str, torch.Tensor]:
    """The parameters of a stock GPTModel that stock megatron-core has loaded; nothing may be missing or left over."""
    shape = policy.part.shape
    config = transformer_config(shape, layout.model_copy(update={"sequence": False}), NO_FP8, torch.float32)
    spec = get_gpt_layer_local_spec(shape.num_experts, qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    if shape.num_experts:
        # The local layers call this norm as if a linear had it inside, which no layer with experts has.
        del spec.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    model = GPTModel(
        config,
        spec,
        padded_vocab_size(shape.vocab_size, layout.tensor),
        shape.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # rows that pad the vocabulary are in no file
    state = dist_checkpointing.load(model.sharded_state_dict(), str(folder), strict=StrictHandling.RAISE_ALL)
    model.load_state_dict(state)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def convert(path: Path, shards: Path, family: str, layout: ParallelConfig) -> None:
    if not (path / "hf").is_dir():
        make_model(path / "hf", family, tied=family == "qwen2", num_key_value_heads=4)
        hf_to_megatron(path / "hf", path / "megatron")
    hf_to_megatron(path / "hf", shards, Layout("shards", layout.tensor, layout.pipeline))


def load(path: Path, layout: ParallelConfig, parallel: Parallel) -> Policy:
    return build_policy(ModelConfig(path=path, dtype="float32"), OptimizerConfig(), layout, parallel, 10, 1)


def saved(path: Path, layout: ParallelConfig, parallel: Parallel) -> list[str]:
    """What differs after: load, save as a run does, back to a Hugging Face folder."""
    folder = path / "step_000001" / "policy"
    parallel.from_rank0(lambda: folder.mkdir(parents=True))
    save_policy(load(path / "megatron", layout, parallel), folder)

    def back() -> list[str]:
        megatron_to_hf(folder.parent, path / "back", model=path / "hf")
        return (
            verify(path / "hf", path / "back")[0].lines + verify(path / "megatron", folder.parent, path / "hf")[0].lines
        )

    return parallel.from_rank0(back)
