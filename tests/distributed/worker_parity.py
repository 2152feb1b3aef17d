"""Ranks of test_parity: every family against transformers, before and after an optimizer step, and the audit."""

from pathlib import Path

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from transformers import AutoModelForCausalLM

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy import platform
from megatron_urpo.policy.packing import PackedBatch, TokenSequence, pack
from megatron_urpo.policy.parallel import close_parallel, init_parallel
from megatron_urpo.policy.policy import Policy, build_policy
from tests.distributed.launch import write_result
from tests.support.models import DENSE, make_model

LENGTHS = ((7, 33, 120), (4, 90))
VOCABULARY = 127


def main(folder: Path, tensor: int, pipeline: int, sequence: bool, recompute: str) -> None:
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline, sequence=sequence, recompute=recompute)
    parallel = init_parallel(layout, 0)
    generator = torch.Generator().manual_seed(1)
    rows = [[torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in part] for part in LENGTHS]
    result = {}
    for family in DENSE:
        for tied in (False, True):
            path = folder / f"{family}-{tied}"
            parallel.from_rank0(
                lambda path=path, family=family, tied=tied: make_model(path, family, tied=tied) and None
            )
            model = ModelConfig(path=path, dtype="float32")
            policy = build_policy(model, OptimizerConfig(lr=1e-3), layout, parallel, 10, 1)
            reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            logits = logits_gap(policy, reference, rows[0][2])
            before = worst_gap(policy, reference, rows)
            grad_norm = 0.0
            for _ in range(2):
                policy.forward_backward(batches(policy, rows), negative_logprob)
                grad_norm = policy.step()
            weights = dict(policy.export())
            if parallel.rank == 0:
                reference.load_state_dict(weights, strict=not tied)
            gaps = parallel.gather(policy.logprobs(batches(policy, rows)))
            after = 0.0
            if parallel.rank == 0:
                after = max(gap(got, want) for got, want in zip(last_stage(gaps), truth(reference, rows), strict=True))
            result[f"{family}-{tied}"] = {"logits": logits, "before": before, "after": after, "grad_norm": grad_norm}
    audit = parallel.gather({shim: sorted(places) for shim, places in platform.AUDIT.items()})
    if parallel.rank == 0:
        write_result(folder, {"models": result, "audit": audit})
    close_parallel()


def batches(policy: Policy, rows: list[list[list[int]]]) -> list[PackedBatch]:
    device = policy.parallel.device
    return [pack([TokenSequence(row, 2) for row in part], policy.alignment, device) for part in rows]


def negative_logprob(logprobs: torch.Tensor, _: torch.Tensor, __: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
    return -logprobs.sum() / 300, {}


def truth(reference: torch.nn.Module, rows: list[list[list[int]]]) -> list[torch.Tensor]:
    """transformers' log-probabilities of the same targets, one sequence at a time."""
    with torch.no_grad():
        return [torch.cat([_row_truth(reference, torch.tensor(row)) for row in part]) for part in rows]


def _row_truth(reference: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logprobs = torch.log_softmax(reference(ids[None]).logits[0, :-1].double(), -1)
    return logprobs.gather(1, ids[1:, None])[1:, 0]


def logits_gap(policy: Policy, reference: torch.nn.Module, row: list[int]) -> float:
    """Largest difference of the whole logits of one sequence, put together from all vocabulary shards."""

    def local_logits(_: PackedBatch, hidden_T1H: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
        if policy.part.config.sequence_parallel:
            hidden_T1H = gather_from_sequence_parallel_region(hidden_T1H)
        return hidden_T1H[:, 0] @ policy.part.module.output_weight.t()

    batch = pack([TokenSequence(row, 1)], policy.alignment, policy.parallel.device)
    with torch.no_grad():
        mine = policy._run(policy.model, [batch], local_logits, forward_only=True)
        want = reference(torch.tensor([row[:-1]])).logits[0]
    shards = [part[0] for part in policy.parallel.gather(mine) if part][: policy.parallel.tensor]
    got = torch.cat(shards, -1)[: len(row) - 1, :VOCABULARY]
    return gap(got, want.double())


def worst_gap(policy: Policy, reference: torch.nn.Module, rows: list[list[list[int]]]) -> float:
    got = last_stage(policy.parallel.gather(policy.logprobs(batches(policy, rows))))
    return max(gap(a, b) for a, b in zip(got, truth(reference, rows), strict=True))


def last_stage(everywhere: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return next(part for part in everywhere if part)


def gap(got: torch.Tensor, want: torch.Tensor) -> float:
    return (got.double() - want).abs().max().item()
