"""The weights of a checkpoint, whatever its kind, by rows of Hugging Face tensors or of whole Megatron tensors.

`HuggingFaceWeights` (here) has the first by nature, the Megatron kinds (`RegionWeights` and below it torch_dist.py,
shards.py) the second; each derives the other through the name table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.folder import WeightFolder
from megatron_urpo.policy.hf.regions import Region, hf_rows, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, weight_entries
from megatron_urpo.policy.weights.rows import Rows, to_tensor

if TYPE_CHECKING:
    from torch import Tensor


class Weights(ABC):
    """Rows are views into mapped files where they can be; use them before you ask for more."""

    def __init__(self, place: Path, shape: ModelShape):
        self.place, self.shape = place, shape
        self.shapes = hf_shapes(shape)
        self.entries = {name: entry for entry in weight_entries(shape, "te") for name in entry.hf}

    @abstractmethod
    def check(self) -> None:
        """Raises ConfigError where a tensor is missing, of another shape, or its file too short; reads headers only."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Of the Hugging Face tensor `name`."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Rows:
        """Rows of the Hugging Face tensor `name`."""

    def hf_tensor(self, name: str) -> "Tensor":
        """The Hugging Face tensor `name`. It may be mapped: copy what is kept."""
        return to_tensor(self.read(name, 0, self.shapes[name][0]), self.dtype(name))

    @abstractmethod
    def whole(self, entry: WeightEntry) -> "Tensor":
        """The unsharded Megatron tensor, without padding. It may be mapped: copy what is kept."""

    @abstractmethod
    def names(self) -> set[str]:
        """All Hugging Face tensors that are there, those that the model does not have included."""


class HuggingFaceWeights(Weights):
    def __init__(self, folder: Path, shape: ModelShape):
        super().__init__(folder, shape)
        self._folder = WeightFolder(folder)

    def check(self) -> None:
        self._folder.check_holds(self.shapes)
        for name in self.shapes:
            self._folder.dtype(name)

    def dtype(self, name: str) -> str:
        return self._folder.dtype(name)

    def read(self, name: str, start: int, stop: int) -> Rows:
        return self._folder.rows(name, start, stop)

    def whole(self, entry: WeightEntry) -> "Tensor":
        from megatron_urpo.policy.hf.tensors import join

        return join(entry, [self.hf_tensor(name) for name in entry.hf], self.shape)

    def names(self) -> set[str]:
        return self._folder.names()


Part = tuple[Region, Callable[[int, int], Rows]]
"""Where a stored part lies in the whole, and what reads its local rows."""


class RegionWeights(Weights):
    """Whole Megatron tensors stored in parts."""

    @abstractmethod
    def parts(self, entry: WeightEntry) -> Iterator[Part]:
        """The stored parts of a weight. Raises ConfigError where there is none."""

    def whole(self, entry: WeightEntry) -> "Tensor":
        return to_tensor(self.rows(entry, 0, whole_shape(entry, self.shapes)[0]), self.dtype(entry.hf[0]))

    def read(self, name: str, start: int, stop: int) -> Rows:
        entry = self.entries[name]
        return hf_rows(entry, name, start, stop, self.shape, self.shapes, lambda a, b: self.rows(entry, a, b))

    def rows(self, entry: WeightEntry, start: int, stop: int) -> Rows:
        """Rows of the whole tensor: one part's own where it has them all, else put together."""
        columns = whole_shape(entry, self.shapes)[1:]
        target: Rows | None = None
        found = 0
        for region, read in self.parts(entry):
            first, last = max(start, region.whole), min(stop, region.whole + region.rows)
            if first >= last:
                continue
            part = read(region.local + first - region.whole, region.local + last - region.whole)
            whole_rows = region.columns is None or (region.columns,) == columns
            if whole_rows and (first, last) == (start, stop):
                return part
            if target is None:
                target = np.empty((stop - start, *columns), part.dtype)
            place = target[first - start : last - start]
            (place if whole_rows else place[:, region.column : region.column + (region.columns or 0)])[:] = part
            found += part.size
        if target is None or found != target.size:
            raise ConfigError(
                f"model.path: {self.place} holds only a part of {entry.key!r}; the checkpoint is incomplete, take"
                " another"
            )
        return target
