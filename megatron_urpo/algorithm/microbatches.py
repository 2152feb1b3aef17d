"""Packs samples of different lengths into micro-batches and spreads these over data-parallel ranks.

Tokens fill memory, so they have the cap; costs are time, so they are what is balanced (`cost.py`). Pure and
deterministic: every rank computes the same plan from the same numbers. The plan's promises:

- every sample is in exactly one micro-batch, and no micro-batch holds more than `max_tokens`;
- every rank has the same number of micro-batches, so collectives inside the schedule line up;
- there are no more micro-batches than best-fit decreasing needs, rounded up to a multiple of the ranks;
- where the cap stands in nobody's way, micro-batches differ in cost by no more than the costliest sample.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

from megatron_urpo.algorithm.alignment import round_up


def plan_microbatches(
    lengths: Sequence[int], costs: Sequence[int], *, max_tokens: int, num_ranks: int
) -> list[list[list[int]]]:
    """Plan[rank][micro-batch] = indices into `lengths` (tokens of each sample, at least 1), ascending.

    `costs` are each sample's work in any unit. No samples give every rank no micro-batch.

    Raises:
        ValueError: a sample is longer than `max_tokens` or has no token.
    """
    _check(lengths, max_tokens)
    if not lengths:
        return [[] for _ in range(num_ranks)]
    num_bins = round_up(-(-sum(lengths) // max_tokens), num_ranks)
    while True:
        bins = (
            _even(lengths, costs, num_bins, max_tokens)
            or _even(lengths, lengths, num_bins, max_tokens)
            or _full(lengths, num_bins, max_tokens)
        )
        if bins is not None:  # at last: with a bin for each sample everything fits
            return _deal(bins, costs, num_ranks)
        num_bins += num_ranks


def _check(lengths: Sequence[int], max_tokens: int) -> None:
    for index, length in enumerate(lengths):
        if length > max_tokens:
            raise ValueError(
                f"sample {index} has {length} tokens, above the {max_tokens} of one micro-batch; raise"
                " loss.max_tokens_per_micro_batch or lower the limits on prompt and new tokens"
            )
        if length < 1:
            raise ValueError(f"sample {index} has {length} tokens; a sample has at least its prompt's")


def _even(lengths: Sequence[int], costs: Sequence[int], num_bins: int, max_tokens: int) -> list[list[int]] | None:
    """Costliest first, each into the cheapest bin that has room; None where no bin has (Graham 1969, with a cap)."""
    shortest = min(lengths)
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    rooms = [max_tokens] * num_bins
    open_bins = [(0, index) for index in range(num_bins)]  # (cost, bin): already a heap
    for sample in _largest_first(costs):
        passed = []
        while open_bins and rooms[open_bins[0][1]] < lengths[sample]:
            passed.append(heapq.heappop(open_bins))
        if not open_bins:
            return None
        cost, cheapest = open_bins[0]
        bins[cheapest].append(sample)
        rooms[cheapest] -= lengths[sample]
        heapq.heapreplace(open_bins, (cost + costs[sample], cheapest))
        for entry in passed:
            if rooms[entry[1]] >= shortest:  # a bin without room for anything is never looked at again
                heapq.heappush(open_bins, entry)
    return bins


def _full(lengths: Sequence[int], num_bins: int, max_tokens: int) -> list[list[int]] | None:
    """Best-fit decreasing under the lowest cap at which it needs `num_bins`; None where even `max_tokens` is too low.

    It fits where hardly any room is left over; the lowered cap keeps it from filling some bins and leaving others empty
    (MULTIFIT, Coffman, Garey and Johnson 1978).
    """
    order = _largest_first(lengths)
    low, high = 1, max_tokens
    found = _best_fit(lengths, order, num_bins, high)
    while found is not None and low < high:
        middle = (low + high) // 2
        bins = _best_fit(lengths, order, num_bins, middle)
        if bins is None:
            low = middle + 1
        else:
            found, high = bins, middle
    return found


def _best_fit(lengths: Sequence[int], order: Sequence[int], num_bins: int, cap: int) -> list[list[int]] | None:
    """In `order`, each into the fullest bin that has room; None where `num_bins` are too few.

    A sample above `cap` has a bin to itself: so one long sample does not keep the cap of all others up.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    rooms = [(cap, index) for index in range(num_bins)]  # sorted
    for sample in order:
        taken = min(lengths[sample], cap)
        place = bisect_left(rooms, (taken, -1))
        if place == num_bins:
            return None
        room, index = rooms.pop(place)
        bins[index].append(sample)
        insort(rooms, (room - taken, index))
    return bins


def _deal(bins: Sequence[Sequence[int]], costs: Sequence[int], num_ranks: int) -> list[list[list[int]]]:
    """Costliest first, a row at a time, the row's costliest to the rank with the least so far.

    So micro-batch k costs about the same on each rank, and what it differs by is made good by the next.
    """
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    by_cost = [(sum(costs[sample] for sample in samples), sorted(samples)) for samples in bins]
    by_cost.sort(key=lambda entry: (-entry[0], entry[1]))
    for start in range(0, len(by_cost), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda rank: (loads[rank], rank))
        for rank, (cost, samples) in zip(ranks, by_cost[start : start + num_ranks], strict=True):
            plan[rank].append(samples)
            loads[rank] += cost
    return plan


def _largest_first(values: Sequence[int]) -> list[int]:
    return sorted(range(len(values)), key=lambda index: (-values[index], index))
