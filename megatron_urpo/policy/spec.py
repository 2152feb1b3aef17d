"""The two kinds of layers that a model can be built of.

`te`: Transformer Engine's fused layers, as megatron-core specifies them. `torch`: megatron-core's local layers with the
two parts that they lack filled in: a norm that knows of sequence parallelism, and attention over packed sequences. On
CPUs, where nothing is fused, norm and gated activation are those of `elementwise.py`.
"""

import math
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.elementwise import rms_norm, swiglu

SpecName = Literal["torch", "te"]


def choose_spec(asked: Literal["auto", "torch", "te"]) -> SpecName:
    """`te` where Transformer Engine is installed and a GPU is there, unless asked otherwise. Raises ConfigError."""
    present = find_spec("transformer_engine") is not None and torch.cuda.is_available()
    if asked == "te" and not present:
        raise ConfigError(
            "model.spec: te needs Transformer Engine and a CUDA GPU, and at least one is missing here; install the"
            " `gpu` extra on a GPU machine, or set model.spec to `torch`"
        )
    if asked == "auto":
        return "te" if present else "torch"
    return asked


def layer_spec(name: SpecName, config: TransformerConfig) -> Any:
    """What megatron-core's GPTModel takes as its transformer layer specification."""
    if name == "te":
        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    layer, attention = spec.submodules, spec.submodules.self_attention.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = TorchRMSNorm
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = TorchRMSNorm
    if config.num_moe_experts:
        # A norm before experts is never part of a linear, so it keeps its name in checkpoints, as it does under `te`.
        del layer.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    elif not config.bias_activation_fusion:
        # Not a ModuleSpec of it: of one whose module is not MLP itself megatron-core warns, for every layer.
        layer.mlp = GatedMLP
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=TorchRMSNorm)


class TorchRMSNorm(torch.nn.RMSNorm):
    """megatron-core's local RMSNorm asserts that sequence parallelism is off; this one lets its gradient be reduced."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # finalize_model_grads sums the gradients of parameters with this mark over the tensor-parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return super().forward(x) if x.is_cuda else rms_norm(x, self.weight, self.eps)


class GatedMLP(MLP):  # type: ignore[misc]
    """megatron-core's MLP without biases, gated by silu, with the activation in one piece."""

    def __init__(self, config: TransformerConfig, **settings: Any):
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(config, linears, **settings)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        gate_and_value, _no_bias = self.linear_fc1(hidden_states)
        output: tuple[Tensor, Tensor | None] = self.linear_fc2(swiglu(gate_and_value))
        return output


class PackedAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention over packed sequences, [tokens, heads, dim], through scaled_dot_product_attention.

    Sequences of similar length are padded to the longest of their class and attended in one call. Classes are powers of
    two, so less than half of what is computed is padding, and thousands of short sequences cost a few calls.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ):
        super().__init__(config=config)
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        assert packed_seq_params is not None, "this project trains on packed sequences only"
        shapes, pad, unpad = padding_plan(packed_seq_params)
        sizes = [math.prod(shape) for shape in shapes]
        padded = [_Pad.apply(x, pad, unpad).split(sizes) for x in (query, key, value)]  # type: ignore[no-untyped-call]
        parts = []
        for shape, *rows in zip(shapes, *padded, strict=True):
            q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in rows)  # [sequences, heads, length, dim]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
            parts.append(out.transpose(1, 2).flatten(0, 1))
        return _Unpad.apply(torch.cat(parts), unpad).flatten(1)  # type: ignore[no-untyped-call, no-any-return]


class _Pad(torch.autograd.Function):
    """Padding has no gradient: no real token sees it, and what it sees itself is thrown away. So nothing is summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        return x.index_select(0, pad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        ctx.num_padded = len(padded)
        return padded.index_select(0, unpad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (unpad,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_padded, *grad.shape[1:]).index_copy_(0, unpad, grad), None


def padding_plan(packed: PackedSeqParams) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """(sequences, length) of each length class; the token at each place of their padded rows; each token's place.

    Padding repeats the last token: causal attention never shows it to the tokens before. Computed once a micro-batch.
    """
    plan: tuple[list[tuple[int, int]], Tensor, Tensor] | None = getattr(packed, "padding_plan", None)
    if plan is not None:
        return plan
    starts = packed.cu_seqlens_q.tolist()
    classes: dict[int, list[tuple[int, int]]] = {}
    for start, end in pairwise(starts):
        if end > start:
            classes.setdefault((end - start - 1).bit_length(), []).append((start, end))
    shapes, rows, unpad = [], [], torch.empty(starts[-1], dtype=torch.long)
    offset = 0
    for sequences in classes.values():
        first = torch.tensor([start for start, _ in sequences])
        lengths = torch.tensor([end for _, end in sequences]) - first
        longest = int(lengths.max())
        place = torch.arange(longest).expand(len(sequences), -1)
        index = first[:, None] + place.minimum(lengths[:, None] - 1)
        real = place < lengths[:, None]
        unpad[index[real]] = offset + real.flatten().nonzero().flatten()
        shapes.append((len(sequences), longest))
        rows.append(index.flatten())
        offset += index.numel()
    device = packed.cu_seqlens_q.device
    plan = (shapes, torch.cat(rows).to(device), unpad.to(device))
    packed.padding_plan = plan
    return plan
