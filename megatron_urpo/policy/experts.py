"""Mixture-of-experts layers: what megatron-core is told of them, and the layouts that it cannot compute.

Experts are shared by tensor-parallel ranks as dense layers are, every rank a part of each; expert parallelism is off.
Routing is that of the model and nothing is added to the loss: load balancing belongs to pre-training.
"""

from typing import Any

import torch

from megatron_urpo.config import ConfigError
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.policy.hf.dimensions import ModelShape


def check_experts(shape: ModelShape, layout: ParallelConfig, on_gpu: bool) -> None:
    """Raises ConfigError for layouts that megatron-core's expert layers do not have."""
    if shape.num_experts is None:
        return
    if layout.tensor > 1 and not layout.sequence:
        raise ConfigError(
            f"parallel.sequence: must be true for a model with experts at parallel.tensor {layout.tensor}, since"
            " megatron-core does not train them otherwise; set it, or parallel.tensor to 1"
        )
    if layout.pipeline > 1 and not on_gpu:
        raise ConfigError(
            f"parallel.pipeline: {layout.pipeline} stages of a model with experts need a GPU: the one dispatcher that"
            " goes with packed micro-batches, `alltoall`, works with CUDA streams; set it to 1"
        )


def expert_arguments(shape: ModelShape, spec: str) -> dict[str, Any]:
    """For TransformerConfig; a dense model gets the dispatcher too, since its check asks for one."""
    if shape.num_experts is None:
        return {"moe_token_dispatcher_type": "alltoall"}
    return {
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.ffn_hidden_size,
        "moe_router_topk": shape.experts_per_token,
        # Softmax over the chosen experts' logits alone is softmax over all, renormalised.
        "moe_router_pre_softmax": not shape.normalized_router,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": spec == "te",
        # `allgather` is the dispatcher that needs no CUDA stream.
        "moe_token_dispatcher_type": "alltoall" if torch.cuda.is_available() else "allgather",
    }
