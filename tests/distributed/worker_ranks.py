"""Two ranks of test_ranks: talk between ranks, and log-probabilities over a vocabulary that both share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.policy.logprobs import token_logprobs
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.protocols import RankZeroError
from tests.distributed.launch import write_result


def main(folder: Path) -> None:
    with joined_ranks(ParallelConfig(tensor=2)) as parallel:
        result = parallel.gather({**talk(parallel), **vocabulary_parallel(parallel)})
        if parallel.rank == 0:
            write_result(folder, result)


def talk(parallel: Parallel) -> dict[str, Any]:
    def fail() -> None:
        raise LookupError(f"rank {parallel.rank} looked in vain")

    try:
        parallel.from_rank0(fail)
        caught = "nothing"
    except (LookupError, RankZeroError) as error:
        caught = f"{type(error).__name__}: {str(error).splitlines()[-1]}"
    return {
        "caught": caught,
        "from_rank0": parallel.from_rank0(lambda: f"told by {parallel.rank}"),
        "any": [parallel.any(parallel.rank == 1), parallel.any(False)],
        "gather": parallel.gather(parallel.rank * 10),
    }


def vocabulary_parallel(parallel: Parallel) -> dict[str, float]:
    """Largest differences from whole logits of 101 words; two ranks share these, the last one's part padded to 51.

    Gradients are those of a mean over the tokens, as a training loss is.
    """
    generator = torch.Generator().manual_seed(0)
    words, tokens, size = 101, 30, 16
    whole = torch.full((102, size), 50.0)
    whole[:words] = torch.randn(words, size, generator=generator)
    start = torch.randn(tokens, size, generator=generator)
    targets = torch.randint(0, words, (tokens,), generator=generator)
    mix = torch.randn(2, tokens, generator=generator) / tokens

    def results(hidden: torch.Tensor, weight: torch.Tensor, function: Callable[..., Any]) -> list[torch.Tensor]:
        hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprob, entropy = function(hidden, weight)
        gradients = torch.autograd.grad((mix[0] * logprob + mix[1] * entropy).sum(), (hidden, weight))
        return [logprob.detach(), entropy.detach(), *gradients]

    def chunked(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(hidden, weight, targets, words, dist.group.WORLD, chunk_elements=7 * 51)

    def whole_logits(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.log_softmax(hidden @ weight[:words].t(), -1)
        return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    part = slice(51 * parallel.rank, 51 * (parallel.rank + 1))
    ours, want = results(start, whole[part], chunked), results(start, whole, whole_logits)
    dist.all_reduce(ours[2])  # each rank has its share of the gradient of the hidden states
    want[3] = want[3][part]
    names = ("logprob", "entropy", "grad_hidden", "grad_weight")
    return {name: float((a - b).abs().max()) for name, a, b in zip(names, ours, want, strict=True)}
