"""The planner: plans a person can check, then the promises on random lengths."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.algorithm.microbatches import plan_microbatches


def test_by_hand() -> None:
    # 22 tokens at 12 a micro-batch need two: 7 | 6, then 5 beside the 6, then 4 beside the 7.
    assert plan_microbatches([4, 6, 7, 5], max_tokens=12, num_ranks=1) == [[[0, 2], [1, 3]]]
    assert plan_microbatches([4, 6, 7, 5], max_tokens=12, num_ranks=2) == [[[0, 2]], [[1, 3]]]
    assert plan_microbatches([1, 1, 1], max_tokens=100, num_ranks=1) == [[[0, 1, 2]]]


def test_heavy_and_light_meet_on_each_rank() -> None:
    # Four single-sample micro-batches of 9, 8, 7, 6: dealt back and forth, 9 + 6 against 8 + 7.
    assert plan_microbatches([6, 7, 8, 9], max_tokens=10, num_ranks=2) == [[[3], [0]], [[2], [1]]]


def test_fewer_samples_than_ranks_leave_empty_micro_batches() -> None:
    assert plan_microbatches([5], max_tokens=8, num_ranks=3) == [[[0]], [[]], [[]]]
    assert plan_microbatches([], max_tokens=8, num_ranks=2) == [[], []]


def test_another_micro_batch_for_each_rank_where_the_least_number_does_not_fit() -> None:
    # 18 tokens would fill two micro-batches of 9, but no two of these samples go together.
    plan = plan_microbatches([6, 6, 6], max_tokens=9, num_ranks=2)
    assert [len(rank) for rank in plan] == [2, 2]


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"sample 1 has 9 tokens, above the 8 .*max_tokens_per_micro_batch"):
        plan_microbatches([8, 9], max_tokens=8, num_ranks=1)
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        plan_microbatches([0], max_tokens=8, num_ranks=1)


cases = st.integers(1, 64).flatmap(
    lambda cap: st.tuples(st.lists(st.integers(1, cap), max_size=60), st.just(cap), st.integers(1, 5))
)


@settings(deadline=None)
@given(cases)
def test_promises(case: tuple[list[int], int, int]) -> None:
    lengths, cap, num_ranks = case
    plan = plan_microbatches(lengths, max_tokens=cap, num_ranks=num_ranks)
    assert plan == plan_microbatches(tuple(lengths), max_tokens=cap, num_ranks=num_ranks)
    assert len(plan) == num_ranks
    micro_batches = [samples for rank in plan for samples in rank]
    assert sorted(sample for samples in micro_batches for sample in samples) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    loads = [sum(lengths[sample] for sample in samples) for samples in micro_batches]
    assert max(loads, default=0) <= cap
    if len(lengths) >= len(micro_batches):
        assert all(micro_batches)
    longest = max(lengths, default=0)
    assert max(loads, default=0) - min(loads, default=0) <= longest
    rank_loads = [sum(lengths[sample] for samples in rank for sample in samples) for rank in plan]
    assert max(rank_loads) - min(rank_loads) <= longest


@settings(deadline=None)
@given(cases)
def test_not_many_more_micro_batches_than_tokens_need(case: tuple[list[int], int, int]) -> None:
    """One fewer a rank failed because some sample found every micro-batch fuller than cap - longest."""
    lengths, cap, num_ranks = case
    plan = plan_microbatches(lengths, max_tokens=cap, num_ranks=num_ranks)
    num_bins = sum(len(rank) for rank in plan)
    least = -(-sum(lengths) // cap)
    if num_bins > -(-least // num_ranks) * num_ranks:
        assert (num_bins - num_ranks) * (cap - max(lengths) + 1) <= sum(lengths)


def test_thousands_of_samples_are_quick() -> None:
    lengths = [(index * 7919) % 4000 + 1 for index in range(8192)]
    plan = plan_microbatches(lengths, max_tokens=16384, num_ranks=64)
    filled = sum(lengths) / (16384 * sum(len(rank) for rank in plan))
    assert filled > 0.95
