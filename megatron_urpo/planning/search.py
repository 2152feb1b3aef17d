"""Layouts of a model over GPUs, from those that cost least time to those that save most memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.planning.activations import Recompute
from megatron_urpo.policy.hf.shape import ModelShape

MODES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Candidate:
    layout: ParallelConfig
    peak: int
    """Bytes of the fullest GPU, with all that lies there."""

    def overrides(self) -> str:
        layout = self.layout
        return (
            f"parallel.tensor={layout.tensor} parallel.sequence={str(layout.sequence).lower()}"
            f" parallel.pipeline={layout.pipeline} parallel.recompute={layout.recompute}"
        )


def layouts(shape: ModelShape, gpus: int, per_node: int, base: ParallelConfig) -> Iterator[ParallelConfig]:
    """Every way that cuts the model evenly: tensor-parallel ranks stay inside a node, stages have equal layers."""
    cut = math.gcd(shape.num_heads, shape.num_query_groups, shape.ffn_hidden_size)
    for tensor in _divisors(math.gcd(cut, gpus)):
        if tensor > per_node:
            continue
        for pipeline in _divisors(math.gcd(shape.num_layers, gpus // tensor)):
            for mode in MODES:
                yield base.model_copy(
                    update={"tensor": tensor, "pipeline": pipeline, "sequence": tensor > 1, "recompute": mode}
                )


def fitting(candidates: Iterator[ParallelConfig], peak: Callable[[ParallelConfig], int], room: int) -> list[Candidate]:
    """Those whose fullest GPU needs no more than `room`, the cheapest first.

    Cost by rules of thumb: a pipeline stage idles while others begin, a tensor-parallel rank waits for others twice a
    layer, and full recomputation is a third more work.
    """
    found: dict[tuple[int, int], list[Candidate]] = {}
    for layout in candidates:
        item, kept = Candidate(layout, peak(layout)), found.setdefault((layout.tensor, layout.pipeline), [])
        # More recomputation that saves nothing: without stored attention matrices the selective kind may keep more.
        if item.peak <= room and all(item.peak < cheaper.peak for cheaper in kept):
            kept.append(item)
    return sorted((item for kept in found.values() for item in kept), key=lambda item: _cost(item.layout))


def nearest(found: list[Candidate], base: ParallelConfig, count: int) -> list[Candidate]:
    """Those with the least changed from `base`."""

    def distance(item: Candidate) -> float:
        layout = item.layout
        return (
            abs(math.log2(layout.tensor / base.tensor))
            + abs(math.log2(layout.pipeline / base.pipeline))
            + abs(MODES.index(layout.recompute) - MODES.index(base.recompute))
        )

    return sorted(found, key=distance)[:count]


def _cost(layout: ParallelConfig) -> float:
    return (
        (1 + 0.08 * math.log2(layout.tensor))
        * (1 + 0.12 * math.log2(layout.pipeline))
        * (1, 1.02, 1.33)[MODES.index(layout.recompute)]
    )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
