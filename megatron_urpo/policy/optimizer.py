"""Gradient buckets, AdamW with fp32 master weights, and the learning-rate schedule: megatron-core's own."""

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from megatron_urpo.config.model import OptimizerConfig as OptimizerSettings
from megatron_urpo.policy.model import ModelPart


def wrap_model(part: ModelPart, distributed_optimizer: bool) -> DistributedDataParallel:
    """The module with contiguous gradient buffers, whose gradients are *summed* over data-parallel ranks."""
    config = part.config
    module = Float16Module(config, part.module) if config.bf16 else part.module
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=distributed_optimizer,
            overlap_grad_reduce=False,
            overlap_param_gather=False,
            average_in_collective=False,
            check_for_nan_in_grad=False,
        ),
        module,
    )
    # The loss is already divided by a count that every rank knows, so the token count of the schedule is not used.
    config.finalize_model_grads_func = lambda model, _, **kwargs: finalize_model_grads(model, None, **kwargs)
    return wrapped


def build_optimizer(
    model: DistributedDataParallel, settings: OptimizerSettings, distributed_optimizer: bool
) -> MegatronOptimizer:
    """AdamW; megatron-core gives norms and biases no weight decay.

    `model.config.grad_scale_func` stays unset: it is of use in fp16 only, and a config that refers to the optimizer
    would keep both for ever. megatron-core 0.16.1's float32 shards are views with a gradient graph, whose leaves hold
    the model's hooks, which hold model and config: a circle through C++ that Python's collector does not see.
    """
    bf16 = bool(model.config.bf16)
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=distributed_optimizer,
        log_num_zeros_in_grad=False,
    )
    return get_megatron_optimizer(config, [model])


def build_scheduler(
    optimizer: MegatronOptimizer, settings: OptimizerSettings, num_steps: int, updates_per_step: int
) -> OptimizerParamScheduler:
    """Linear warm-up, then `settings.schedule` over `num_steps` training steps of `updates_per_step` updates each."""
    total = num_steps * updates_per_step
    warmup = min(settings.warmup_steps * updates_per_step, total - 1)
    return OptimizerParamScheduler(
        optimizer,
        # Warm-up begins one update above zero: a first update at learning rate 0 would be wasted.
        init_lr=settings.lr / (warmup + 1) if warmup else 0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr if settings.schedule != "constant" else settings.lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=total,
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
