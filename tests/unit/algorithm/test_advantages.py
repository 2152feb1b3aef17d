"""Group-relative advantages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.algorithm.advantages import group_advantages


def test_by_hand() -> None:
    # Group 0: mean 1/2, population std 1/2. Group 7: mean 2, std sqrt(2/3).
    advantages = group_advantages([1, 1, 0, 2, 0, 3], [0, 7, 0, 7, 0, 7], eps=0.0)
    third = 1 / 3
    std = math.sqrt((2 / 3) ** 2 / 3 + (third**2) * 2 / 3)
    assert advantages == pytest.approx(
        [(1 - third) / std, -1 / math.sqrt(2 / 3), -third / std, 0, -third / std, 1 / math.sqrt(2 / 3)]
    )


def test_a_lone_right_answer_stands_out_by_the_root_of_the_others() -> None:
    advantages = group_advantages([1, 0, 0, 0, 0], [3] * 5, eps=0.0)
    assert advantages == pytest.approx([2, -0.5, -0.5, -0.5, -0.5])


def test_no_signal_is_exactly_zero() -> None:
    # The mean of three 0.1 is not 0.1 in binary; divided by eps the rounding would look like a signal.
    assert group_advantages([0.1, 0.1, 0.1, 5.0], [0, 0, 0, 1], eps=1e-300) == [0.0] * 4
    assert group_advantages([], []) == []


def test_eps_tames_tiny_differences() -> None:
    assert group_advantages([1e-9, 0.0], [0, 0]) == pytest.approx([5e-4, -5e-4], rel=1e-3)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="2 rewards for 1 group ids"):
        group_advantages([1, 2], [0])
    with pytest.raises(ValueError, match="reward 1 of group 4 is nan"):
        group_advantages([1, math.nan], [4, 4])


scored = st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 4)), max_size=30)


@settings(deadline=None)
@given(scored)
def test_naive_oracle(rows: list[tuple[float, int]]) -> None:
    rewards, groups = [reward for reward, _ in rows], [group for _, group in rows]
    advantages = group_advantages(rewards, groups)
    for reward, group, advantage in zip(rewards, groups, advantages, strict=True):
        members = torch.tensor([r for r, g in rows if g == group], dtype=torch.float64)
        expected = (reward - members.mean()) / (members.std(correction=0) + 1e-6)
        assert advantage == pytest.approx(expected.item(), abs=1e-8)


@settings(deadline=None)
@given(scored, st.randoms())
def test_order_of_samples_does_not_matter(rows: list[tuple[float, int]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = group_advantages([r for r, _ in rows], [g for _, g in rows])
    shuffled = group_advantages([rows[i][0] for i in order], [rows[i][1] for i in order])
    assert shuffled == pytest.approx([straight[i] for i in order])
