"""The hand-written backward passes against autograd's own, in both training dtypes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_urpo.policy.elementwise import rms_norm, swiglu

EPS = 1e-6


def swiglu_oracle(both: Tensor) -> Tensor:
    gate, value = both.chunk(2, -1)
    return F.silu(gate) * value


def results(function: object, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradient of every input, for one fixed gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)  # type: ignore[operator]
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, dtype=torch.float32).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


# One rounding of the result and a few of intermediates: 8 units in the last place of the largest value.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_equals_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(7, 1, 24)).to(dtype)
    for own, expected in zip(results(swiglu, x), results(swiglu_oracle, x), strict=True):
        assert own.dtype == expected.dtype
        assert (own - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


# A sum over 12 values and over 7 tokens, each term with a few roundings: 32 units in the last place of the largest.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 1, 12), (7, 3, 12)])
def test_rms_norm_equals_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), (1 + torch.randn(12) / 4).to(dtype)
    own = results(lambda x, weight: rms_norm(x, weight, EPS), x, weight)
    expected = results(lambda x, weight: F.rms_norm(x, (12,), weight, EPS), x, weight)
    for a, b in zip(own, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= 32 * torch.finfo(dtype).eps * b.abs().max()


def test_a_row_of_zeros_has_finite_gradients() -> None:
    output, *grads = results(lambda x, weight: rms_norm(x, weight, EPS), torch.zeros(3, 8), torch.ones(8))
    assert all(bool(x.isfinite().all()) for x in (output, *grads))
    assert output.abs().max() == 0
