"""Importance weights: by hand, and against a token-by-token version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_urpo.algorithm.corrections import sequence_mis, token_tis
from megatron_urpo.algorithm.losses import kl_to_reference


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def test_tokens_above_the_cap_are_cut_off_and_those_below_one_are_not() -> None:
    weights = token_tis(logs(0.5, 0.9, 0.1, 0.3), logs(0.5, 0.3, 0.2, 0.1), 2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.5, 2.0])


def test_a_sequence_is_weighed_as_a_whole() -> None:
    old, rollout = logs(0.6, 0.3, 0.9, 0.9), logs(0.3, 0.4, 0.3, 0.9)
    weights = sequence_mis(old, rollout, torch.tensor([1.0, 1.0, 0.0, 0.0]), 2.0)
    assert weights.tolist() == pytest.approx([1.5, 1.5, 0.0, 0.0])  # 2 * 0.75, and 3 is above the cap


def test_no_token_has_no_weight() -> None:
    assert sequence_mis(torch.empty(0), torch.empty(0), torch.empty(0), 2.0).shape == (0,)


@given(
    st.lists(
        st.tuples(st.floats(-3, 0, width=32), st.floats(-3, 0, width=32), st.integers(0, 4)), min_size=1, max_size=40
    )
)
def test_against_a_loop_over_sequences(tokens: list[tuple[float, float, int]]) -> None:
    old, rollout, sequence = (torch.tensor(column) for column in zip(*tokens, strict=True))
    got = sequence_mis(old, rollout, sequence, 2.0).tolist()
    for place, (_, _, mine) in enumerate(tokens):
        gap = math.fsum(a - b for a, b, other in tokens if other == mine)
        # 40 differences of float32 numbers below 4, each rounded by at most 2**-23, and the weight's own rounding.
        if abs(gap - math.log(2.0)) > 1e-5:
            assert got[place] == pytest.approx(math.exp(gap) if gap < math.log(2.0) else 0.0, rel=40 * 2**-23 + 2**-23)


def test_weights_carry_no_gradient() -> None:
    old = torch.tensor([-1.0], requires_grad=True)
    assert not token_tis(old, torch.tensor([-2.0]), 2.0).requires_grad
    assert not sequence_mis(old, torch.tensor([-2.0]), torch.zeros(1), 9.0).requires_grad


def test_kl_to_reference_by_hand() -> None:
    logprobs = logs(0.5, 0.2).requires_grad_()
    reference = logs(0.25, 0.4).requires_grad_()
    kl = kl_to_reference(logprobs, reference)
    assert kl.tolist() == pytest.approx([0.5 - 1 - math.log(0.5), 2 - 1 - math.log(2)])
    gradients = torch.autograd.grad(kl.sum(), [logprobs, reference], allow_unused=True)
    assert gradients[0].tolist() == pytest.approx([1 - 0.5, 1 - 2])  # d/d logp of exp(r - logp) - 1 - (r - logp)
    assert gradients[1] is None


def test_the_mean_of_kl_to_reference_is_the_divergence() -> None:
    """Its expectation under the policy is KL(policy || reference), by summing over a small vocabulary."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    mean = (policy * kl_to_reference(policy.log(), reference.log())).sum()
    assert mean.item() == pytest.approx((policy * (policy / reference).log()).sum().item(), rel=1e-5)
