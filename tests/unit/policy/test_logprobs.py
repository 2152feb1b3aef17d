"""Log-probability and entropy against log_softmax in float64. The vocabulary-parallel case is in tests/distributed."""

import torch

from megatron_urpo.policy.logprobs import token_logprobs

EPS = torch.finfo(torch.float32).eps


def naive(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax(logits.double(), -1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def test_two_words_by_hand() -> None:
    """Probabilities 1/4 and 3/4: log 3/4 and the entropy of a 1:3 coin."""
    logits = torch.tensor([[0.0, 1.0986123]])
    logprob, entropy = token_logprobs(logits, torch.tensor([1]), 2)
    assert abs(logprob.item() - -0.2876821) < 1e-6
    assert abs(entropy.item() - 0.5623351) < 1e-6


def test_values_and_gradients_equal_log_softmax() -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(40, 97)).requires_grad_()
    targets = torch.randint(0, 97, (40,))
    logprob, entropy = token_logprobs(logits, targets, 97)
    want_logprob, want_entropy = naive(logits, targets)
    # Each value is a sum over 97 terms in float32 of magnitudes up to about 30: 97 * 30 * eps bounds the rounding.
    tolerance = 97 * 30 * EPS
    assert (logprob - want_logprob).abs().max() < tolerance
    assert (entropy - want_entropy).abs().max() < tolerance
    weights = torch.randn(2, 40)
    (got,) = torch.autograd.grad((weights[0] * logprob + weights[1] * entropy).sum(), logits)
    (want,) = torch.autograd.grad((weights[0] * want_logprob + weights[1] * want_entropy).sum(), logits)
    assert (got - want).abs().max() < tolerance


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(3, 7)
    before = logits.clone()
    token_logprobs(logits, torch.tensor([0, 1, 2]), 5)
    assert torch.equal(logits, before)


def test_padding_of_the_vocabulary_takes_no_part() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 8)
    logits[:, 5:] = 100.0  # would win everything
    padded = logits.clone().requires_grad_()
    targets = torch.randint(0, 5, (6,))
    logprob, entropy = token_logprobs(padded, targets, 5)
    want_logprob, want_entropy = naive(logits[:, :5], targets)
    assert torch.allclose(logprob.double(), want_logprob, atol=1e-6)
    assert torch.allclose(entropy.double(), want_entropy, atol=1e-6)
    (gradient,) = torch.autograd.grad((logprob + entropy).sum(), padded)
    assert torch.equal(gradient[:, 5:], torch.zeros(6, 3))
    assert gradient.isfinite().all()


def test_bfloat16_logits_are_computed_in_float32() -> None:
    torch.manual_seed(2)
    logits = torch.randn(10, 50).bfloat16().requires_grad_()
    targets = torch.randint(0, 50, (10,))
    logprob, _ = token_logprobs(logits, targets, 50)
    assert logprob.dtype == torch.float32
    assert (logprob - naive(logits, targets)[0]).abs().max() < 50 * 10 * EPS
    (gradient,) = torch.autograd.grad(logprob.sum(), logits)
    assert gradient.dtype == torch.bfloat16


def test_no_tokens() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    logprob, entropy = token_logprobs(logits, torch.empty(0, dtype=torch.long), 5)
    (logprob.sum() + entropy.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 5)
