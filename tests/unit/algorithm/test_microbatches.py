"""The planner: plans a person can check, then the promises on random lengths and costs."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.algorithm.cost import sequence_flops
from megatron_urpo.algorithm.microbatches import plan_microbatches

Plan = list[list[list[int]]]
QWEN_0_5B = {
    "num_layers": 24, "hidden_size": 896, "ffn_hidden_size": 4864, "num_heads": 14, "num_query_groups": 2,
    "head_dim": 64, "vocab_size": 151936,
}  # fmt: skip


def plan_linear(lengths: list[int], *, max_tokens: int, num_ranks: int) -> Plan:
    """Where a token costs the same in any sequence."""
    return plan_microbatches(lengths, lengths, max_tokens=max_tokens, num_ranks=num_ranks)


def test_by_hand() -> None:
    # 22 tokens at 12 a micro-batch need two: 7 | 6, then 5 beside the 6, then 4 beside the 7.
    assert plan_linear([4, 6, 7, 5], max_tokens=12, num_ranks=1) == [[[0, 2], [1, 3]]]
    assert plan_linear([4, 6, 7, 5], max_tokens=12, num_ranks=2) == [[[0, 2]], [[1, 3]]]
    assert plan_linear([1, 1, 1], max_tokens=100, num_ranks=1) == [[[0, 1, 2]]]


def test_cost_is_balanced_and_tokens_are_capped() -> None:
    # The long sample costs as much as the four others; even tokens would be 12 and 12, costs 80 and 48.
    lengths, costs = [8, 4, 4, 4, 4], [64, 16, 16, 16, 16]
    assert plan_microbatches(lengths, costs, max_tokens=16, num_ranks=2) == [[[0]], [[1, 2, 3, 4]]]
    # The last sample belongs beside the first, 9 + 6 against 8 + 7, but 5 + 6 tokens are too many.
    assert plan_microbatches([5, 2, 2, 6], [9, 8, 7, 6], max_tokens=10, num_ranks=1) == [[[1, 2, 3], [0]]]


def test_a_micro_batch_passed_over_keeps_its_last_room() -> None:
    # The cheaper one has no room for either sample of 2 tokens, but all the room that the last, of 1, needs.
    plan = plan_microbatches([4, 1, 2, 2, 1], [5, 5, 4, 3, 1], max_tokens=5, num_ranks=1)
    assert plan == [[[1, 2, 3], [0, 4]]]


def test_heavy_and_light_meet_on_each_rank() -> None:
    # Four single-sample micro-batches of 9, 8, 7, 6: the rank with 9 gets 6, the one with 8 gets 7.
    assert plan_linear([6, 7, 8, 9], max_tokens=10, num_ranks=2) == [[[3], [0]], [[2], [1]]]


def test_where_even_costs_do_not_fit_full_micro_batches_do() -> None:
    # 20 tokens in two of 10. Evenly: 6 | 4, 4 beside it, 3, then the last 3 finds 9 and 8. Filled: 6, 4 | 4, 3, 3.
    assert plan_linear([6, 4, 4, 3, 3], max_tokens=10, num_ranks=1) == [[[0, 1], [2, 3, 4]]]


def test_where_even_costs_do_not_fit_even_tokens_may() -> None:
    # All cost the same, so the seven single tokens go first and leave no room for the two of the last. Nine tokens fill
    # five micro-batches of two, but there are six, and none need be idle.
    plan = plan_microbatches([1] * 7 + [2], [1] * 8, max_tokens=2, num_ranks=2)
    assert sorted(len(indices) for rank in plan for indices in rank) == [1, 1, 1, 1, 2, 2]


def test_fewer_samples_than_ranks_leave_empty_micro_batches() -> None:
    assert plan_linear([5], max_tokens=8, num_ranks=3) == [[[0]], [[]], [[]]]
    assert plan_linear([], max_tokens=8, num_ranks=2) == [[], []]


def test_another_micro_batch_for_each_rank_where_the_least_number_does_not_fit() -> None:
    # 18 tokens would fill two micro-batches of 9, but no two of these samples go together.
    plan = plan_linear([6, 6, 6], max_tokens=9, num_ranks=2)
    assert [len(rank) for rank in plan] == [2, 2]


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"sample 1 has 9 tokens, above the 8 .*max_tokens_per_micro_batch"):
        plan_linear([8, 9], max_tokens=8, num_ranks=1)
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        plan_linear([0], max_tokens=8, num_ranks=1)


cases = st.integers(1, 64).flatmap(
    lambda cap: st.tuples(
        st.lists(st.tuples(st.integers(1, cap), st.integers(1, 1000)), max_size=60), st.just(cap), st.integers(1, 5)
    )
)


@settings(deadline=None)
@given(cases)
def test_promises(case: tuple[list[tuple[int, int]], int, int]) -> None:
    samples, cap, num_ranks = case
    lengths, costs = [length for length, _ in samples], [cost for _, cost in samples]
    plan = plan_microbatches(lengths, costs, max_tokens=cap, num_ranks=num_ranks)
    assert plan == plan_microbatches(tuple(lengths), tuple(costs), max_tokens=cap, num_ranks=num_ranks)
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    micro_batches = [indices for rank in plan for indices in rank]
    assert sorted(index for indices in micro_batches for index in indices) == list(range(len(samples)))
    assert all(indices == sorted(indices) for indices in micro_batches)
    assert max(sums(micro_batches, lengths), default=0) <= cap
    assert len(micro_batches) <= -(-best_fit_decreasing(lengths, cap) // num_ranks) * num_ranks


@settings(deadline=None)
@given(cases)
def test_even_costs_where_the_cap_is_wide(case: tuple[list[tuple[int, int]], int, int]) -> None:
    """Each sample went to the cheapest: what a micro-batch is ahead of another is at most the last sample it got."""
    samples, _, num_ranks = case
    lengths, costs = [length for length, _ in samples], [cost for _, cost in samples]
    cap = sum(lengths) or 1
    plan = plan_microbatches(lengths, costs, max_tokens=cap, num_ranks=num_ranks)
    loads = sums([indices for rank in plan for indices in rank], costs)
    assert max(loads, default=0) - min(loads, default=0) <= max(costs, default=0)


def long_tailed(seed: int) -> list[int]:
    """2,048 lengths up to 4,608: a prompt of 50 to 512 tokens and a response of mean 900, cut at 4,096."""
    source = random.Random(seed)
    return [source.randint(50, 512) + min(4096, 1 + int(source.expovariate(1 / 900))) for _ in range(2048)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cap", [4608, 8192, 16384])
def test_a_long_tailed_batch_is_even_over_eight_ranks(cap: int, seed: int) -> None:
    lengths = long_tailed(seed)
    assert max(lengths) > 4096
    costs = [sequence_flops(length, length * 3 // 4, **QWEN_0_5B) for length in lengths]
    plan = plan_microbatches(lengths, costs, max_tokens=cap, num_ranks=8)
    rows = [[index for indices in rank for index in indices] for rank in plan]
    assert imbalance(sums(rows, costs)) < 0.02
    assert imbalance(sums(rows, lengths)) < 0.02
    assert all(indices for rank in plan for indices in rank)  # none idle for the sake of full others
    least = -(-sum(lengths) // cap)
    assert sum(len(rank) for rank in plan) < least + 2 * 8


@pytest.mark.parametrize("alignment", [1, 16, 128])
def test_padding_of_a_long_tailed_batch(alignment: int) -> None:
    lengths = long_tailed(0)
    plan = plan_linear(lengths, max_tokens=16384 // alignment * alignment, num_ranks=8)
    loads = sums([indices for rank in plan for indices in rank], lengths)
    computed = sum(-(-load // alignment) * alignment for load in loads)
    assert max(loads) <= 16384
    assert 1 - sum(loads) / computed < 0.01


def sums(groups: list[list[int]], values: list[int]) -> list[int]:
    return [sum(values[index] for index in indices) for indices in groups]


def imbalance(loads: list[int]) -> float:
    """How much longer the slowest takes than if all were equal."""
    return max(loads) / (sum(loads) / len(loads)) - 1


def best_fit_decreasing(lengths: list[int], cap: int) -> int:
    """The number of bins of the textbook's rule, written naively."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else cap) - length)
    return len(rooms)
