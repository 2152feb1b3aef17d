"""What autograd really keeps in a pass, tensor by tensor, beside what is predicted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.planning.activations import CHUNK_ELEMENTS, activations
from megatron_urpo.policy import logprobs
from megatron_urpo.policy.packing import TokenSequence
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from tests.support.models import COMMON, EXPERTS
from tests.support.shapes import write_shape

NUM_TOKENS, LENGTH = 512, 64
# A hidden size that is not the heads' width, so that one does not stand for the other.
SHAPES = {
    "qwen2": {**COMMON, "model_type": "qwen2", "hidden_size": 96, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3": {**COMMON, "model_type": "qwen3", "head_dim": 32},
    "qwen3_moe": {**COMMON, "model_type": "qwen3_moe", "hidden_size": 96, **EXPERTS, "num_experts": 6},
    "qwen3_moe, softmax over all": {**COMMON, "model_type": "qwen3_moe", **EXPERTS, "norm_topk_prob": False},
}


@pytest.mark.parametrize("family", list(SHAPES))
def test_kept_tensors_are_counted(tmp_path: Path, family: str) -> None:
    """Within four numbers a token, whose layers keep hundreds: rotary frequencies, and indices that layers share.

    Experts with the fused activation of GPUs as well; here it runs uncompiled.
    """
    model = ModelConfig(path=write_shape(tmp_path, SHAPES[family]), init="random", dtype="float32", spec="torch")
    with joined_ranks(ParallelConfig()) as parallel:
        for recompute in ("none", "selective", "full"):
            layout = ParallelConfig(recompute=recompute)
            policy = build_policy(model, OptimizerConfig(), layout, parallel, num_steps=1, updates_per_step=1)
            shape = policy.part.shape
            head_reads = shape.hidden_size * 4 * NUM_TOKENS  # kept by the log-probabilities, not run here
            for fused in (False, True) if shape.num_experts else (True,):
                policy.part.config.bias_activation_fusion = fused
                want = activations(shape, layout, "float32", NUM_TOKENS, NUM_TOKENS, stage=0, fused_experts=fused)
                difference = kept_bytes(policy) - (want.layers + want.outside - head_reads)
                assert abs(difference) <= 4 * 4 * NUM_TOKENS, (recompute, fused, difference / NUM_TOKENS)


def kept_bytes(policy: Policy) -> int:
    sequences = [TokenSequence([1] * (LENGTH + 1), 1, {})] * (NUM_TOKENS // LENGTH)
    (batch,) = policy.micro_batches(sequences, NUM_TOKENS, [])
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.part.module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no later one has its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.compiler.set_stance("force_eager"):
        policy.model(batch.tokens_1T, batch.positions_1T, None, packed_seq_params=batch.packed)
    return sum(storage.nbytes() for storage in kept.values())


def test_chunks_are_those_of_the_log_probabilities() -> None:
    assert CHUNK_ELEMENTS == logprobs.CHUNK_ELEMENTS


def test_planning_needs_no_megatron_and_no_process_groups() -> None:
    code = "import sys, megatron_urpo.planning; print('megatron.core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
