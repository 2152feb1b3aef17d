"""A stream of named weights against a model: complete and of the right shapes, or refused as a whole."""

from collections.abc import Iterable
from typing import Any

import torch


def stage_weights(model: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (parameter of the model, its new value); the model is not touched.

    Values are copied to the model's device and dtype, since a stream may reuse the memory of what it yields. With
    tied embeddings `lm_head.weight` may be absent; where it comes, it must equal the embedding.
    Raises ValueError for a name that is unknown, given twice or missing, and for a wrong shape.
    """
    targets = _by_checkpoint_name(model.state_dict())
    staged: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if name not in targets:
            raise ValueError(f"weights: {name} is unknown to {type(model).__name__}")
        if name in staged:
            raise ValueError(f"weights: {name} came twice")
        if tensor.shape != targets[name].shape:
            raise ValueError(
                f"weights: {name} has shape {tuple(tensor.shape)}, the model expects {tuple(targets[name].shape)}"
            )
        staged[name] = tensor.detach().to(device=targets[name].device, dtype=targets[name].dtype, copy=True)
    _resolve_ties(targets, staged)
    missing = [name for name in targets if name not in staged]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"weights: {shown} did not come; an update must hold every weight of the model")
    return [(targets[name], value) for name, value in staged.items()]


def _by_checkpoint_name(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers 5 fuses experts in memory; checkpoints, and so a stream, name each of them. Views into `state`."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        experts, _, last = name.rpartition(".")
        fused = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last)
        if not experts.endswith(".experts") or fused is None:
            named[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            for part, rows in zip(fused, matrix.chunk(len(fused)), strict=True):
                named[f"{experts}.{expert}.{part}.weight"] = rows
    return named


def _resolve_ties(targets: dict[str, torch.Tensor], staged: dict[str, torch.Tensor]) -> None:
    """Fills in names that share the memory of one that came. Raises ValueError where both came and differ."""
    by_memory: dict[int, str] = {}
    for name, target in targets.items():
        first = by_memory.setdefault(target.data_ptr(), name)
        if first == name:
            continue
        if name in staged and first in staged and not torch.equal(staged[name], staged[first]):
            raise ValueError(f"weights: {name} and {first} are tied in this model, but came with different values")
        for given, absent in ((first, name), (name, first)):
            if given in staged and absent not in staged:
                staged[absent] = staged[given]
