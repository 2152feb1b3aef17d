"""Log-probabilities of fixed tokens by each checkpoint's own implementation: transformers, or the trainer's model.

Tensors that are the same may still meet code that reads them in another way; this sees that. Whole models in memory, in
float32, one after the other.
"""

import torch
from torch import Tensor

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.conversion.locate import Checkpoint
from megatron_urpo.policy.hf.dimensions import ModelShape

NUM_SEQUENCES, LENGTH = 4, 48


def logprob_gap(a: Checkpoint, b: Checkpoint) -> float:
    """The largest difference of a log-probability between the two. Raises ValueError for other vocabularies."""
    if a.shape.vocab_size != b.shape.vocab_size:
        raise ValueError(f"vocabularies of {a.shape.vocab_size} and {b.shape.vocab_size}")
    rows = _rows(a.shape)
    return (_logprobs(a, rows) - _logprobs(b, rows)).abs().max().item()


def _rows(shape: ModelShape) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    length = min(LENGTH, shape.max_positions)
    return [torch.randint(shape.vocab_size, (length,), generator=generator).tolist() for _ in range(NUM_SEQUENCES)]


def _logprobs(checkpoint: Checkpoint, rows: list[list[int]]) -> Tensor:
    return (_by_megatron if checkpoint.megatron else _by_transformers)(checkpoint, rows)


@torch.no_grad()
def _by_transformers(checkpoint: Checkpoint, rows: list[list[int]]) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    ids = torch.tensor(rows)
    logprobs = torch.log_softmax(model(ids).logits[:, :-1].double(), -1)
    return logprobs.gather(2, ids[:, 1:, None]).flatten()


def _by_megatron(checkpoint: Checkpoint, rows: list[list[int]]) -> Tensor:
    from megatron_urpo.policy.model import load_weights
    from megatron_urpo.policy.packing import TokenSequence, pack
    from megatron_urpo.policy.parallel import joined_ranks
    from megatron_urpo.policy.policy import build_policy

    layout = ParallelConfig()
    model = ModelConfig(path=checkpoint.model, init="random", dtype="float32")
    with joined_ranks(layout) as parallel:
        policy = build_policy(model, OptimizerConfig(), layout, parallel, 1, 1)
        load_weights(policy.part, checkpoint.weights, parallel)
        batch = pack([TokenSequence(row, 1) for row in rows], policy.alignment, parallel.device)
        (logprobs,) = policy.logprobs([batch])
    return logprobs.double()
