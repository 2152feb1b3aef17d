"""Weights in buckets of a bounded size: planned once from names and shapes, filled from a stream that has to match.

A server ignores a name that it does not know and dies of a wrong shape, so a stream is compared with the plan before
any byte of its bucket is sent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """Tensors that lie in a buffer one after the other, without gaps."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes) * self.dtype.itemsize

    def views(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, the tensor's place in `buffer`); `buffer` is [num_bytes or more] of uint8."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            end = start + math.prod(shape) * self.dtype.itemsize
            yield name, buffer[start:end].view(self.dtype).view(shape)
            start = end


def plan_buckets(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, max_bytes: int) -> list[Bucket]:
    """Buckets of at most `max_bytes`, in the order of `shapes`; a tensor above that has one of its own."""
    buckets: list[Bucket] = []
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if names and filled + size > max_bytes:
            buckets.append(_bucket(names, shapes, dtype))
            names, filled = [], 0
        names.append(name)
        filled += size
    return [*buckets, _bucket(names, shapes, dtype)] if names else buckets


def _bucket(names: Sequence[str], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> Bucket:
    return Bucket(tuple(names), tuple(tuple(shapes[name]) for name in names), dtype)


def fill(bucket: Bucket, stream: Iterator[tuple[str, Tensor]], buffer: Tensor) -> None:
    """Copies the next tensors of `stream` into `buffer`. Raises ValueError where they are not the bucket's."""
    for name, place in bucket.views(buffer):
        found, tensor = next(stream, ("", None))
        if tensor is None:
            raise ValueError(f"weights: {name} did not come; an update must hold every weight of the model")
        if found != name:
            raise ValueError(f"weights: {found} came where {name} was due")
        if tensor.shape != place.shape or tensor.dtype != place.dtype:
            raise ValueError(
                f"weights: {name} has shape {tuple(tensor.shape)} and {tensor.dtype}, the model {tuple(place.shape)}"
                f" and {place.dtype}"
            )
        place.copy_(tensor.detach())


def check_end(stream: Iterator[tuple[str, Tensor]]) -> None:
    """Raises ValueError where more comes than was planned."""
    for name, _ in stream:
        raise ValueError(f"weights: {name} is unknown to the model, or came twice")
