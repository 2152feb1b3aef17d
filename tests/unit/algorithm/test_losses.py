"""The clipped objective: by hand, against a token-by-token version, its gradient, and its independence of the split."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.algorithm.losses import clipped_policy_loss, denominator

LOW, HIGH = 0.2, 0.28


def loss_of(
    ratios: list[float], advantages: list[float], weights: list[float] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Loss sum, stats, and the gradient of each log-probability."""
    old = torch.linspace(-3, -1, len(ratios), dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    loss, stats = clipped_policy_loss(
        logprobs,
        old,
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(weights or [1.0] * len(ratios), dtype=torch.float64),
        clip_low=LOW,
        clip_high=HIGH,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss, stats, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "has_gradient"),
    [
        (1.0, 2.0, 2.0, True),
        (1.5, 2.0, 2.56, False),  # already 28% likelier: no more
        (1.27, 2.0, 2.54, True),
        (0.5, 2.0, 1.0, True),  # below the range but good: pulled up
        (0.5, -2.0, -1.6, False),  # already 20% less likely: no less
        (0.81, -2.0, -1.62, True),
        (1.5, -2.0, -3.0, True),  # above the range but bad: pushed down
        (1.5, 0.0, 0.0, False),
    ],
)
def test_one_token_by_hand(ratio: float, advantage: float, objective: float, has_gradient: bool) -> None:
    loss, _, gradient = loss_of([ratio], [advantage])
    assert loss.item() == pytest.approx(-objective)
    assert gradient.item() == pytest.approx(-ratio * advantage if has_gradient else 0.0)


def test_stats_by_hand() -> None:
    _, stats, _ = loss_of([1.5, 0.5, 0.5, 1.0, 9.0], [1, -1, 1, 1, 1], [1, 0.5, 2, 1, 0])
    logs = [math.log(1.5), math.log(0.5), math.log(0.5), 0.0]
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(
        {
            "tokens": 4,
            "clipped_tokens": 2,
            "ratio_sum": 3.5,
            "kl_k1_sum": -sum(logs),
            "kl_k3_sum": 3.5 - 4 - sum(logs),
        }
    )
    assert not any(value.requires_grad for value in stats.values())


def test_nothing_under_weight_zero_counts() -> None:
    bad = torch.tensor([math.nan, -math.inf, math.inf, -1.0])
    logprobs = torch.tensor([-1.0, -2.0, -math.inf, -0.5], requires_grad=True)
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0])
    loss, stats = clipped_policy_loss(
        logprobs, bad, torch.tensor([1.0, math.nan, math.inf, 1.0]), weights, clip_low=LOW, clip_high=HIGH
    )
    loss.backward()
    assert loss.item() == pytest.approx(-1.28)
    assert stats["tokens"].item() == 1
    assert all(math.isfinite(value.item()) for value in stats.values())
    assert logprobs.grad is not None
    assert logprobs.grad[:3].tolist() == [0, 0, 0]


def test_no_gradient_through_the_old_policy() -> None:
    old = torch.tensor([-1.0], requires_grad=True)
    logprobs = torch.tensor([-1.1], requires_grad=True)
    loss, _ = clipped_policy_loss(logprobs, old, torch.ones(1), torch.ones(1), clip_low=LOW, clip_high=HIGH)
    loss.backward()
    assert old.grad is None
    assert logprobs.grad is not None


tokens = st.lists(
    st.tuples(st.floats(0.3, 3), st.floats(-3, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=20
)


@settings(deadline=None)
@given(tokens)
def test_token_by_token_oracle(rows: list[tuple[float, float, float]]) -> None:
    expected = 0.0
    for ratio, advantage, weight in rows:
        bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
        expected -= weight * min(ratio * advantage, bounded * advantage)
    loss, _, _ = loss_of(*[list(column) for column in zip(*rows, strict=True)])
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(tokens, st.integers(0, 20))
def test_any_split_gives_the_same_sums_and_gradient(rows: list[tuple[float, float, float]], cut: int) -> None:
    cut = min(cut, len(rows))
    ratios, advantages, weights = (
        torch.tensor([row[column] for row in rows], dtype=torch.float64) for column in range(3)
    )
    logprobs = ratios.log().requires_grad_()

    def sums(part: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        zeros = torch.zeros_like(weights[part])
        return clipped_policy_loss(logprobs[part], zeros, advantages[part], weights[part], clip_low=LOW, clip_high=HIGH)

    whole, whole_stats = sums(slice(None))
    (first, first_stats), (second, second_stats) = sums(slice(0, cut)), sums(slice(cut, None))
    torch.testing.assert_close(first + second, whole)
    for name, value in whole_stats.items():
        torch.testing.assert_close(first_stats[name] + second_stats[name], value)
    for got, expected in zip(
        torch.autograd.grad(first + second, logprobs), torch.autograd.grad(whole, logprobs), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_denominator_by_hand() -> None:
    assert denominator([3, 5, 1], "tokens") == 9
    assert denominator([3, 5, 1], "responses") == 3
    for normalization in ("tokens", "responses"):
        with pytest.raises(ValueError, match="no token"):
            denominator([0, 0], normalization)  # type: ignore[arg-type]
