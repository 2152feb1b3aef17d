import numpy as np
import pytest
import torch

from megatron_urpo.inference.sampling import choose_tokens, uniforms

PROBABILITIES = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64)


def choose(uniform: float, temperature: float | None = None) -> tuple[int, float]:
    temperatures = None if temperature is None else torch.tensor([temperature], dtype=torch.float64)
    tokens, logprobs = choose_tokens(
        PROBABILITIES.log()[None], temperatures, torch.tensor([uniform], dtype=torch.float64)
    )
    return int(tokens[0]), float(logprobs[0].exp())


@pytest.mark.parametrize(
    ("uniform", "token", "probability"),
    [(0.0, 0, 0.1), (0.09, 0, 0.1), (0.11, 1, 0.2), (0.29, 1, 0.2), (0.31, 3, 0.7), (1 - 2**-53, 3, 0.7)],
)
def test_inverse_of_the_cumulative_distribution(uniform: float, token: int, probability: float) -> None:
    chosen, chance = choose(uniform)
    assert chosen == token
    assert chance == pytest.approx(probability)
    assert choose(uniform, 1.0)[0] == token


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    # At temperature 0.5 the probabilities go with their squares: 0.01, 0.04, 0.49 of 0.54.
    assert choose(0.05, 0.5) == (1, pytest.approx(0.04 / 0.54))
    # Greedy ignores the uniform; its log-probability is that at temperature 1.
    assert choose(0.0, 0.0) == (3, pytest.approx(0.7))


def test_frequencies_follow_the_probabilities() -> None:
    drawn = torch.from_numpy(uniforms(3, 0, 20000))
    tokens, _ = choose_tokens(PROBABILITIES.log().expand(20000, 4), None, drawn)
    counts = torch.bincount(tokens, minlength=4) / 20000
    assert torch.allclose(counts, PROBABILITIES.float(), atol=0.02)
    assert counts[2] == 0


def test_streams_are_repeatable_and_differ_by_seed_and_index() -> None:
    assert np.array_equal(uniforms(5, 1, 8), uniforms(5, 1, 8))
    assert np.array_equal(uniforms(5, 1, 8)[:3], uniforms(5, 1, 3))
    streams = [tuple(uniforms(seed, index, 4)) for seed in (0, 1, 2**63 - 1) for index in (0, 1, 7)]
    assert len(set(streams)) == len(streams)
