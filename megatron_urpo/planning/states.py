"""Bytes that a rank of the trainer holds all the time: weights, gradient buffer, optimizer.

What megatron-core 0.16.1 allocates with the settings of `policy/optimizer.py`, to the byte: gradients in float32 in one
buffer; with the distributed optimizer a second buffer that the weights live in, parameters that begin at multiples of
64, buckets that end at multiples of 128 and of the data-parallel ranks, and each rank with the optimizer of its part
of every bucket.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_urpo.algorithm.alignment import round_up
from megatron_urpo.planning.parameters import Parameter

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
STEP_BYTES = 4
"""torch's AdamW counts the updates of each tensor in a float32 of its own."""


@dataclass(frozen=True)
class States:
    weights: int
    gradients: int
    masters: int
    """float32 copies of bfloat16 weights"""
    moments: int
    """AdamW's two averages and its counters; there from the first update on."""

    @property
    def optimizer(self) -> int:
        return self.masters + self.moments

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def states(parameters: Sequence[Parameter], dtype: str, data: int, distributed: bool, data_rank: int = 0) -> States:
    """Of rank `data_rank` of `data` data-parallel ranks that hold `parameters`."""
    width = DTYPE_BYTES[dtype]
    if distributed:
        places, buckets = _lay_out(parameters, data)
        held = buckets[-1][1]
        pieces = _share(places, buckets, data, data_rank)
    else:
        held = sum(parameter.size for parameter in parameters)
        pieces = [parameter.size for parameter in parameters]
    updated = sum(pieces)
    return States(
        weights=held * width,
        gradients=held * 4,
        masters=0 if dtype == "float32" else updated * 4,
        moments=updated * 8 + len(pieces) * STEP_BYTES,
    )


def _lay_out(parameters: Sequence[Parameter], data: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(begin, end) of every parameter and of every bucket in the buffer, which is filled from the last one on."""
    places: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    multiple = math.lcm(data, 128)
    position = opened = 0
    for parameter in reversed(parameters):
        position = round_up(position, 64)
        if parameter.shared_embedding and places and position > opened and places[-1][1] > opened:
            position = round_up(places[-1][1], multiple)
            buckets.append((opened, position))
            opened = position
        places.append((position, position + parameter.size))
        position += parameter.size
        if parameter.shared_embedding:
            position = round_up(position, multiple)
            buckets.append((opened, position))
            opened = position
    if position > opened:
        buckets.append((opened, round_up(position, multiple)))
    return places, buckets


def _share(places: list[tuple[int, int]], buckets: list[tuple[int, int]], data: int, rank: int) -> list[int]:
    """Elements of every parameter that lie in the rank's part of a bucket."""
    pieces = []
    for begin, end in buckets:
        part = (end - begin) // data
        low, high = begin + rank * part, begin + (rank + 1) * part
        overlaps = (min(high, stop) - max(low, start) for start, stop in places)
        pieces += [overlap for overlap in overlaps if overlap > 0]
    return pieces
