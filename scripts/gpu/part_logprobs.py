"""Log-probabilities from hidden states: the Triton kernels and the chunks in torch against whole logits, and Liger.

First in float32 on a small shape, where the results must agree; then time and peak memory at a training shape.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import present
from timing import peak_mib, timed
from torch import Tensor

from megatron_urpo.policy.logprobs import token_logprobs

Example = tuple[Tensor, Tensor, Tensor]
Variant = Callable[[Tensor, Tensor, Tensor], Tensor]

DIFFERENCE_LIMIT = 1e-4
"""Relative, in float32. Rounding of products of a few hundred terms stays below 1e-5; a wrong tile is off by 1."""


def measure(tiny: bool) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = variants()
    small = example(37, 24, 300, torch.float32, device) if tiny else example(1000, 200, 5001, torch.float32, device)
    failures = [failure for name in found if name != "liger" for failure in compare(name, found[name], small)]
    shape, dtype = ((20, 32, 300), torch.float32) if tiny else ((4096, 896, 151936), torch.bfloat16)
    large = example(*shape, dtype, device)
    rows = [{"variant": name, **measure_one(variant, large, tiny)} for name, variant in found.items()]
    notes = [f"{shape[0]} tokens, hidden size {shape[1]}, {shape[2]} words, {str(dtype).removeprefix('torch.')}."]
    notes += [
        f"{name} does not import and was not measured." for name in ("triton", "liger_kernel") if not present(name)
    ]
    return {"title": "Log-probability kernels", "notes": notes, "rows": rows, "failures": failures}


def measure_one(variant: Variant, given: Example, tiny: bool) -> dict[str, Any]:
    warm_up, runs = (0, 1) if tiny else (3, 10)
    middle, least, most = timed(partial(both_ways, variant, given), warm_up, runs)
    return {
        "forward and backward, ms": middle * 1e3,
        "least, ms": least * 1e3,
        "most, ms": most * 1e3,
        "forward alone, ms": timed(partial(forward, variant, given), warm_up, runs)[0] * 1e3,
        "peak MiB": peak_mib(partial(both_ways, variant, given)),
    }


def variants() -> dict[str, Variant]:
    found: dict[str, Variant] = {
        "whole logits": whole_logits,
        "torch, in chunks": lambda h, w, t: token_logprobs(h, w, t, len(w))[0],
    }
    if present("triton"):
        found["triton"] = lambda h, w, t: token_logprobs(h, w, t, len(w), kernel="triton")[0]
    if present("liger_kernel") and torch.cuda.is_available():
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()  # the mean: it makes gradients in its forward pass, for that alone
        found["liger"] = lambda h, w, t: -loss(w, h, t)
    return found


def whole_logits(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    logprobs_NV = torch.log_softmax((hidden_NH @ weight_VH.t()).float(), -1)
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0]


def example(tokens: int, hidden: int, words: int, dtype: torch.dtype, device: torch.device) -> Example:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(tokens, hidden, generator=generator).to(device, dtype).requires_grad_(),
        (torch.randn(words, hidden, generator=generator) * hidden**-0.5).to(device, dtype).requires_grad_(),
        torch.randint(0, words, (tokens,), generator=generator).to(device),
    )


def forward(variant: Variant, given: Example) -> Tensor:
    with torch.no_grad():
        return variant(*given)


def both_ways(variant: Variant, given: Example) -> tuple[Tensor, ...]:
    logprobs = variant(*given)
    return (logprobs.detach(), *torch.autograd.grad(logprobs.mean(), given[:2]))


def compare(name: str, variant: Variant, given: Example) -> list[str]:
    """What is further from whole logits in float64 than float32 explains."""
    double = (given[0].double().detach().requires_grad_(), given[1].double().detach().requires_grad_(), given[2])
    logprobs = torch.log_softmax(double[0] @ double[1].t(), -1).gather(1, double[2][:, None])[:, 0]
    want = (logprobs.detach(), *torch.autograd.grad(logprobs.mean(), double[:2]))
    failures = []
    for what, a, b in zip(
        ("log-probability", "gradient of hidden", "gradient of weight"), both_ways(variant, given), want, strict=True
    ):
        difference = float((a - b).abs().max() / b.abs().max())
        if not difference < DIFFERENCE_LIMIT:
            failures.append(f"{name}: {what} is off by {difference:.2g} of its largest value in float32")
    return failures
