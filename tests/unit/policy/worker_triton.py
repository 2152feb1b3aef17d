"""Runs the Triton kernels in a process that interprets them; prints how far they are from float64, as JSON.

Triton decides when it is imported whether it compiles or interprets, so this cannot be done in the tests' own process.
For each case and each result: the largest error divided by what rounding allows, elementwise.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_urpo.policy import logprobs, logprobs_triton
from megatron_urpo.policy.logprobs import token_logprobs

EPS, SMALLEST = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Case:
    tokens: int
    hidden: int
    words: int
    padding: int = 0
    dtype: torch.dtype = torch.float32
    use: str = "both"
    scale: float = 1.0
    chunk_elements: int = 2**24


CASES = {
    "less than one tile": Case(3, 5, 7),
    "one of each": Case(1, 1, 1),
    "whole tiles": Case(128, 64, 256),
    "tiles that are not full": Case(131, 72, 300),
    "several tiles a part": Case(2, 4, 128 * 1024 + 129),
    "chunks of the vocabulary": Case(20, 40, 600, chunk_elements=20 * 256),
    "padding of the vocabulary": Case(9, 16, 200, padding=70),
    "a tile of padding alone": Case(9, 16, 100, padding=200),
    "log-probability alone": Case(9, 16, 140, use="logprob"),
    "entropy alone": Case(9, 16, 140, use="entropy"),
    "large logits": Case(9, 16, 140, scale=100.0),
    "bfloat16": Case(131, 72, 300, padding=3, dtype=torch.bfloat16, chunk_elements=131 * 128),
}


def example(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, weight, targets, weights of the two results in the loss); hidden is a view that is not contiguous."""
    generator = torch.Generator().manual_seed(case.tokens + case.words)
    hidden = torch.randn(case.hidden, case.tokens, generator=generator).to(case.dtype).t()
    weight = (torch.randn(case.words + case.padding, case.hidden, generator=generator) * case.scale).to(case.dtype)
    weight[case.words :] = 1e4  # would win everything
    targets = torch.randint(0, case.words, (case.tokens,), generator=generator)
    mix = torch.randn(2, case.tokens, generator=generator)
    mix *= torch.tensor([[case.use != "entropy"], [case.use != "logprob"]])
    return hidden, weight, targets, mix


def exact(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results in float64, and the error that each may have.

    A logit is a float32 sum of H products: off by at most H * eps * sum |h w|, call it e. Log-probability and entropy
    are sums over words of terms that move by at most (1 + |log p|) e, and rounding each adds as much at most once more.
    A logit's gradient then moves by its own size times the same, and the products add at most (N or V) * eps of what
    they sum; a probability below the smallest float32 may become 0. In bfloat16 the gradient of a logit is cut off by
    the interpreter (2**-7; hardware rounds), a chunk's share and the result are rounded (2**-8 each).
    """
    hidden, weight, targets, mix = (x.double() if x.is_floating_point() else x for x in example(case))
    weight, padding = weight[: case.words], weight[case.words :]
    logprobs_NV = torch.log_softmax(hidden @ weight.t(), -1)
    probs_NV = logprobs_NV.exp()
    entropy_N = -(probs_NV * logprobs_NV).sum(-1)
    onehot_NV = torch.nn.functional.one_hot(targets, case.words)
    logit_NV = mix[0][:, None] * (onehot_NV - probs_NV)
    logit_NV = logit_NV - mix[1][:, None] * probs_NV * (logprobs_NV + entropy_N[:, None])
    results = {
        "logprob": logprobs_NV.gather(1, targets[:, None])[:, 0],
        "entropy": entropy_N,
        "grad_hidden": logit_NV @ weight,
        "grad_weight": torch.cat([logit_NV.t() @ hidden, torch.zeros_like(padding)]),
    }
    moved_N = 2 * (case.hidden + 2) * EPS * (hidden.abs() @ weight.abs().t()).amax(-1)
    moved_N = moved_N * (1 + (probs_NV * logprobs_NV.abs()).sum(-1)) + EPS * logprobs_NV.abs().amax(-1)
    pull_NV = mix[0].abs()[:, None] + mix[1].abs()[:, None] * (1 + logprobs_NV.abs() + entropy_N[:, None])
    size_NV = mix[0].abs()[:, None] * onehot_NV + probs_NV * pull_NV
    rounded = 2**-6 if case.dtype == torch.bfloat16 else 0.0
    error_NV = size_NV * (2 * moved_N[:, None] + rounded) + SMALLEST * pull_NV
    allowed = {
        "logprob": 2 * moved_N,
        "entropy": 2 * moved_N,
        "grad_hidden": (error_NV + case.words * EPS * size_NV) @ weight.abs(),
        "grad_weight": torch.cat(
            [(error_NV + case.tokens * EPS * size_NV).t() @ hidden.abs(), torch.zeros_like(padding)]
        ),
    }
    return results, allowed


def excess(case: Case, results: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each result as a part of the allowed one; where none is allowed, infinite or 0."""
    want, allowed = exact(case)
    found = {}
    for name, value in results.items():
        error = (value.double() - want[name]).abs()
        parts = torch.where(error == 0, 0.0, error / allowed[name])
        found[name] = float(parts.nan_to_num(nan=torch.inf).amax())
    return found


def whole(case: Case) -> dict[str, float]:
    hidden, weight, targets, mix = example(case)
    hidden.requires_grad_()
    weight.requires_grad_()
    pair = token_logprobs(hidden, weight, targets, case.words, chunk_elements=case.chunk_elements, kernel="triton")
    used = [index for index, name in enumerate(("logprob", "entropy")) if case.use in (name, "both")]
    grads = torch.autograd.grad(sum((mix[i] * pair[i]).sum() for i in used), (hidden, weight))
    assert [x.dtype for x in (*pair, *grads)] == [torch.float32] * 2 + [case.dtype] * 2
    return excess(case, dict(zip(("logprob", "entropy", "grad_hidden", "grad_weight"), (*pair, *grads), strict=True)))


def in_shards(case: Case, width: int) -> dict[str, float]:
    """As tensor-parallel ranks with `width` rows each do it, one after the other."""
    hidden, weight, targets, mix = example(case)
    shards = list(weight.split(width))
    locals_ = [torch.where(targets // width == i, targets % width, -1) for i in range(len(shards))]
    reals = [max(0, min(width, case.words - i * width)) for i in range(len(shards))]
    size = case.chunk_elements
    sums = [logprobs_triton.vocabulary_sums(hidden, *part, size) for part in zip(shards, locals_, reals, strict=True)]
    parts = [torch.cat(tensors) for tensors in zip(*sums, strict=True)]
    log_total, entropy, target = logprobs._combine(parts[0], parts[1], None)
    grads = [
        logprobs_triton.gradients(hidden, shard, local, log_total, entropy, mix[0], mix[1], real, size)
        for shard, local, real in zip(shards, locals_, reals, strict=True)
    ]
    return excess(
        case,
        {
            "logprob": target - log_total,
            "entropy": entropy,
            "grad_hidden": torch.stack([grad[0] for grad in grads]).sum(0),
            "grad_weight": torch.cat([grad[1] for grad in grads]),
        },
    )


def no_tokens() -> list[Any]:
    hidden, weight = torch.ones(0, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    logprob, entropy = token_logprobs(hidden, weight, torch.empty(0, dtype=torch.long), 5, kernel="triton")
    grads = torch.autograd.grad(logprob.sum() + entropy.sum(), (hidden, weight))
    return [list(logprob.shape), list(entropy.shape), list(grads[0].shape), float(grads[1].abs().sum())]


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    found: dict[str, Any] = {name: whole(case) for name, case in CASES.items()}
    found["two shards"] = in_shards(Case(37, 24, 300, padding=4), 152)
    # 4 ranks of 104 rows: the third's are part padding, the fourth has nothing else.
    found["a shard of padding alone"] = in_shards(Case(37, 24, 300, padding=116), 104)
    found["no tokens"] = no_tokens()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
