"""The parts of a layer that touch memory rather than multiply, with backward passes written by hand.

On a CPU autograd's own version of each is a chain of full-size temporaries, a quarter of a small model's update. These
keep the input alone for the backward pass and write results in place.

Shapes: `_H` hidden size, `_F` size of the gated layer; `...` the tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_and_value: Tensor) -> Tensor:
    """silu(gate) * value of [..., gate | value] (2 F wide): [..., F]."""
    result: Tensor = _SwiGLU.apply(gate_and_value)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; in float32 inside, like torch's own."""
    result: Tensor = _RMSNorm.apply(x, weight_H, eps)  # type: ignore[no-untyped-call]
    return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, value = both.chunk(2, -1)
        return F.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (both,) = ctx.saved_tensors
        gate, value = both.chunk(2, -1)
        grad_both = torch.empty_like(both)
        grad_gate, grad_value = grad_both.chunk(2, -1)
        torch.mul(F.silu(gate), grad, out=grad_value)
        torch.mul(grad, value, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_both


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_H, scale)
        result: Tensor = (x * scale).mul_(weight_H).to(x.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """With y = x * scale:  dx = scale * (g * weight - y * mean(g * weight * y)),  dweight = sum of g * y."""
        (grad,) = grads
        x, weight_H, scale = ctx.saved_tensors
        weight = weight_H.float()
        normed = x * scale
        product_NH = (grad * normed).flatten(0, -2)
        mean = (product_NH @ weight).div_(x.shape[-1]).view_as(scale)
        grad_x = (grad * weight).sub_(normed.mul_(mean)).mul_(scale)
        return grad_x.to(x.dtype), product_NH.sum(0).to(weight_H.dtype), None
