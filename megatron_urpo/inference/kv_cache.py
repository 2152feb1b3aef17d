"""A key/value cache whose room is reserved once.

transformers' dynamic cache concatenates at every step, which copies all keys and values for each token. Here the room
for prompt and answer is taken when the first tokens arrive and a step writes one column of it.

Shapes: B rows, H key/value heads, L positions written so far, C positions reserved, D size of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values: `keys` and `values` are views (B, H, L, D) of buffers (B, H, C, D)."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_buffer = self._reserve(key_states)
        self.value_buffer = self._reserve(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (B, H, new, D) and returns all that is written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Row b becomes what row `indices[b]` was; an index may occur many times."""
        self.key_buffer = self._reserve(self.keys, indices)
        self.value_buffer = self._reserve(self.values, indices)
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    def append_rows(self, others: "Sequence[PreallocatedLayer]") -> None:
        """Takes the rows of `others` behind its own; all hold the same number of positions."""
        self.key_buffer = torch.cat([self.key_buffer, *(other.key_buffer for other in others)])
        self.value_buffer = torch.cat([self.value_buffer, *(other.value_buffer for other in others)])
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def _reserve(self, states: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        """A buffer with room for `capacity` positions; with `indices`, holding those rows of `states`."""
        num_rows = states.shape[0] if indices is None else len(indices)
        buffer = states.new_empty(num_rows, states.shape[1], self.capacity, states.shape[3])
        if indices is not None:
            buffer[:, :, : states.shape[2]] = states[indices]
        return buffer


class PreallocatedCache(Cache):  # type: ignore[misc]
    """`num_layers` layers with room for `capacity` positions each."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[PreallocatedLayer(capacity) for _ in range(num_layers)])

    def append_rows(self, others: "Sequence[PreallocatedCache]") -> None:
        """Takes the rows of `others` behind its own; all hold the same number of positions."""
        if others:
            for layer, *more in zip(self.layers, *(other.layers for other in others), strict=True):
                layer.append_rows(more)
