"""Packs samples of different lengths into micro-batches and spreads these over data-parallel ranks.

Pure and deterministic: every rank computes the same plan from the same lengths. The plan's promises:

- every sample is in exactly one micro-batch, and no micro-batch holds more than `max_tokens`;
- every rank has the same number of micro-batches, so collectives inside the schedule line up;
- a micro-batch is empty only where there are fewer samples than micro-batches in all;
- the ranks' token loads differ by no more than the longest sample, and so do the loads of all micro-batches.
"""

import heapq
from collections.abc import Sequence


def plan_microbatches(lengths: Sequence[int], *, max_tokens: int, num_ranks: int) -> list[list[list[int]]]:
    """Plan[rank][micro-batch] = indices into `lengths` (tokens of each sample, at least 1), ascending.

    No samples give every rank no micro-batch. The number of micro-batches is the least multiple of `num_ranks` into
    which the longest-first rule of `_balanced_bins` fits the samples.

    Raises:
        ValueError: a sample is longer than `max_tokens` or has no token.
    """
    for index, length in enumerate(lengths):
        if length > max_tokens:
            raise ValueError(
                f"sample {index} has {length} tokens, above the {max_tokens} of one micro-batch; raise"
                " loss.max_tokens_per_micro_batch or lower the limits on prompt and new tokens"
            )
        if length < 1:
            raise ValueError(f"sample {index} has {length} tokens; a sample has at least its prompt's")
    if not lengths:
        return [[] for _ in range(num_ranks)]
    num_bins = _round_up(-(-sum(lengths) // max_tokens), num_ranks)
    while (bins := _balanced_bins(lengths, num_bins, max_tokens)) is None:
        num_bins += num_ranks  # ends: with a bin for each sample everything fits
    return _deal(bins, lengths, num_ranks)


def _balanced_bins(lengths: Sequence[int], num_bins: int, max_tokens: int) -> list[list[int]] | None:
    """Longest first, each into the bin with the fewest tokens; None where one does not fit even there."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, index) for index in range(num_bins)]  # already a heap
    for sample in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        load, lightest = loads[0]
        if load + lengths[sample] > max_tokens:
            return None
        bins[lightest].append(sample)
        heapq.heapreplace(loads, (load + lengths[sample], lightest))
    return bins


def _deal(bins: Sequence[Sequence[int]], lengths: Sequence[int], num_ranks: int) -> list[list[list[int]]]:
    """Heaviest first, back and forth over the ranks: micro-batch k weighs about the same on each of them."""
    heaviest_first = sorted(bins, key=lambda samples: (-sum(lengths[s] for s in samples), sorted(samples)))
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for start in range(0, len(heaviest_first), num_ranks):
        row = heaviest_first[start : start + num_ranks]
        ranks = range(num_ranks) if start // num_ranks % 2 == 0 else reversed(range(num_ranks))
        for rank, samples in zip(ranks, row, strict=True):
            plan[rank].append(sorted(samples))
    return plan


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
