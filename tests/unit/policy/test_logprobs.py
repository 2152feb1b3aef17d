"""Chunked log-probability and entropy against log_softmax of whole logits in float64.

The vocabulary-parallel case is in tests/distributed.
"""

import pytest
import torch

from megatron_urpo.policy.logprobs import token_logprobs

EPS = torch.finfo(torch.float32).eps


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax(hidden.double() @ weight.double().t(), -1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def example(
    tokens: int, hidden: int, words: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, hidden, generator=generator).to(dtype).requires_grad_(),
        torch.randn(words, hidden, generator=generator).to(dtype).requires_grad_(),
        torch.randint(0, words, (tokens,), generator=generator),
    )


def test_two_words_by_hand() -> None:
    """Probabilities 1/4 and 3/4: log 3/4 and the entropy of a 1:3 coin."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0986123]])
    logprob, entropy = token_logprobs(hidden, weight, torch.tensor([1]), 2)
    assert abs(logprob.item() - -0.2876821) < 1e-6
    assert abs(entropy.item() - 0.5623351) < 1e-6


@pytest.mark.parametrize("chunk_tokens", [1, 7, 40, 1000])
@pytest.mark.parametrize("use", ["logprob", "entropy", "both"])
def test_values_and_gradients_equal_whole_logits(chunk_tokens: int, use: str) -> None:
    """Logits are sums of 16 products of size about 1 and the softmax sums 97 terms: 97 * 16 * eps bounds each value."""
    hidden, weight, targets = example(40, 16, 97)
    got = token_logprobs(hidden, weight, targets, 97, chunk_elements=97 * chunk_tokens)
    want = naive(hidden, weight, targets)
    tolerance = 97 * 16 * EPS
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() < tolerance
    mix = torch.randn(2, 40, generator=torch.Generator().manual_seed(9))
    mix = mix * torch.tensor([[use != "entropy"], [use != "logprob"]])
    kept = [i for i, name in enumerate(("logprob", "entropy")) if use in (name, "both")]
    ours = torch.autograd.grad(sum((mix[i] * got[i]).sum() for i in kept), (hidden, weight))
    theirs = torch.autograd.grad(sum((mix[i] * want[i]).sum() for i in kept), (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-6 * b.abs().max() + tolerance / 10


def test_gradients_are_within_1e_6_of_whole_logits_in_float32() -> None:
    hidden, weight, targets = example(64, 32, 500, seed=4)
    weights = torch.randn(64) / 64
    got = torch.autograd.grad((weights * token_logprobs(hidden, weight, targets, 500)[0]).sum(), (hidden, weight))
    whole = torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]
    for a, b in zip(got, torch.autograd.grad((weights * whole).sum(), (hidden, weight)), strict=True):
        assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("chunk_elements", [16, 1000])
def test_padding_of_the_vocabulary_takes_no_part(chunk_elements: int) -> None:
    hidden, weight, targets = example(6, 4, 8, seed=1)
    targets = targets % 5
    with torch.no_grad():
        weight[5:] = 100.0  # would win everything
    got = token_logprobs(hidden, weight, targets, 5, chunk_elements=chunk_elements)
    for a, b in zip(got, naive(hidden, weight[:5], targets), strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)
    # Large gradients too: the padding's logit times one of them must not overflow.
    for loss in (1e6 * got[0], 1e6 * got[0] - 1e6 * got[1]):
        _, gradient = torch.autograd.grad(loss.sum(), (hidden, weight), retain_graph=True)
        assert torch.equal(gradient[5:], torch.zeros(3, 4))
        assert gradient.isfinite().all()


def test_a_second_backward_pass_gives_the_same_gradient() -> None:
    """The first writes over what the forward pass kept, the second computes it anew: a few roundings apart."""
    hidden, weight, targets = example(6, 4, 8)
    loss = token_logprobs(hidden, weight, targets, 8)[0].sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        assert (a - b).abs().max() <= 16 * 8 * EPS * a.abs().max()


def test_bfloat16_weights_give_float32_results() -> None:
    """Products are rounded to bfloat16 (8 bits): logits of size about 16 are off by up to 16 / 2**8."""
    hidden, weight, targets = example(10, 16, 50, seed=2, dtype=torch.bfloat16)
    logprob, _ = token_logprobs(hidden, weight, targets, 50)
    assert logprob.dtype == torch.float32
    assert (logprob - naive(hidden, weight, targets)[0]).abs().max() < 2 * 16 / 2**8
    gradients = torch.autograd.grad(logprob.sum(), (hidden, weight))
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def test_large_logits_stay_finite() -> None:
    hidden, weight, targets = example(5, 4, 9, seed=3)
    logprob, entropy = token_logprobs(hidden * 1e4, weight, targets, 9)
    assert logprob.isfinite().all()
    assert entropy.isfinite().all()
    assert (entropy > -1e-3).all()


def test_inputs_are_left_as_they_were() -> None:
    hidden, weight, targets = example(3, 4, 7)
    before = hidden.clone(), weight.clone()
    logprob, entropy = token_logprobs(hidden, weight, targets, 7)
    (logprob.sum() + entropy.sum()).backward()
    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])


def test_no_tokens() -> None:
    hidden, weight, targets = example(0, 4, 5)
    logprob, entropy = token_logprobs(hidden, weight, targets, 5)
    (logprob.sum() + entropy.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 4)
    assert torch.equal(weight.grad, torch.zeros(5, 4))
