"""Weights, optimizer and schedule of a policy, saved so that any layout can load them.

Files are written by megatron-core's dist_checkpointing in its `torch_dist` format. Some of its ways are worked around
here; each note says when it can go.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_urpo.policy.parts import HostCopyStrategy, Parts
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.safe_pickle import check_pickles

SETTINGS = ("max_lr", "min_lr", "betas", "eps")
"""What an optimizer's state brings along of the run that saved it; the schedule follows the first two."""


def copy_policy(policy: Policy, folder: Path) -> Parts:
    """Collective. Plans a save into `folder`, which must exist and be empty, and copies what this rank has to write.

    The policy may change as soon as this returns. Rank 0's `common.pt` is written already.
    """
    _prepare_torch_adam(policy.optimizer)
    with _quiet():
        request = dist_checkpointing.save(
            _sharded_state(policy, is_loading=False), str(folder), HostCopyStrategy(), async_sharded_save=True
        )

    def finish() -> None:
        for step in request.finalize_fns:
            step()

    return Parts(request.async_fn, finish)


def save_policy(policy: Policy, folder: Path) -> None:
    """Collective. `folder` must exist and be empty; it is whole when this returns."""
    parts = copy_policy(policy, folder)
    parts.write()
    policy.parallel.barrier()
    parts.finish()


def load_policy(policy: Policy, folder: Path) -> None:
    """Collective. Copies the state in `folder` into `policy`, whatever layout saved it.

    Learning rates and the like stay those that `policy` was built with. Raises ConfigError for pickles that hold more
    than a checkpoint does.
    """
    check_pickles(folder)
    _prepare_torch_adam(policy.optimizer)
    settings = [{name: group[name] for name in SETTINGS} for group in policy.optimizer.param_groups]
    with _quiet():
        state = dist_checkpointing.load(_sharded_state(policy, is_loading=True), str(folder))
    policy.part.module.load_state_dict(state["model"])
    policy.optimizer.load_state_dict(state["optimizer"])
    for group, own in zip(policy.optimizer.param_groups, settings, strict=True):
        group.update(own)
    _give_each_its_step(policy.optimizer)
    policy.scheduler.num_steps = 0  # what is loaded is added to it
    policy.scheduler.load_state_dict(state["scheduler"])


def _sharded_state(policy: Policy, is_loading: bool) -> dict[str, Any]:
    metadata = {
        # megatron-core 0.16.1's default type cannot be saved, and `dp_reshardable` ties a file to its layout.
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    model = policy.part.module.sharded_state_dict(metadata=metadata)
    with _index_without_padding(policy.optimizer):
        optimizer = policy.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)
    return {"model": model, "optimizer": optimizer, "scheduler": policy.scheduler.state_dict()}


@contextlib.contextmanager
def _index_without_padding(optimizer: Any) -> Iterator[None]:
    """distrib_optimizer.py:1483 cuts a parameter's state out of the buckets' states, joined without their padding, at
    the parameter's place in the buffer with padding. Behind a padded bucket (a tied embedding over several stages has
    its own) everything is saved shifted: a silently wrong checkpoint. For the call, the places are told without
    padding. Goes when megatron-core uses one kind of offset for both.
    """
    buffers = [
        buffer
        for part in getattr(optimizer, "chained_optimizers", [optimizer])
        if isinstance(part, DistributedOptimizer)
        for buffer in part.buffers
    ]
    padded = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        shifts, joined = [], 0
        for bucket in buffer.buckets:
            shifts.append(joined - bucket.offset)
            joined += bucket.numel_unpadded
        buffer.param_index_map = {
            parameter: (start + shifts[bucket], end + shifts[bucket], bucket)
            for parameter, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, index in zip(buffers, padded, strict=True):
            buffer.param_index_map = index


def _prepare_torch_adam(optimizer: Any) -> None:
    """Makes the state that a save expects and a load fills in, where no update has made it yet.

    Without Transformer Engine or apex megatron-core falls back to torch's AdamW, which keeps a `step` for each
    parameter; its loaders do not know of it. Goes when megatron-core 0.16's successors restore `step` themselves.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        if not isinstance(inner, torch.optim.AdamW):
            continue
        for group in inner.param_groups:
            for parameter in group["params"]:
                if parameter not in inner.state:
                    inner.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter.data),
                        "exp_avg_sq": torch.zeros_like(parameter.data),
                    }
        if isinstance(part, DistributedOptimizer):
            _keep_step_on_load(part)


def _give_each_its_step(optimizer: Any) -> None:
    """distrib_optimizer.py:821-825 puts one `step` tensor into every parameter's state; torch's AdamW counts it up in
    place once for each parameter, so the bias correction would run away after a load. Goes when each gets its own.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in part.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()


def _keep_step_on_load(optimizer: DistributedOptimizer) -> None:
    """distrib_optimizer.py:938-940 asks each loaded state for `step`, which the loader has dropped: KeyError."""
    plain = optimizer._set_main_param_and_optimizer_states

    def with_step(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group, order = optimizer.model_param_group_index_map[model_param]
        state = optimizer.optimizer.state[optimizer.optimizer.param_groups[group]["params"][order]]
        tensors.setdefault("step", state["step"])
        plain(model_param, tensors)

    optimizer._set_main_param_and_optimizer_states = with_step


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """dist_checkpointing warns of torch internals that it uses itself; a user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
