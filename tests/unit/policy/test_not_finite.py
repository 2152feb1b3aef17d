"""The sample whose gradient is not finite is found among finite ones."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.not_finite import not_finite_samples
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import update
from megatron_urpo.types import Sample
from tests.support.models import make_model

LOSS = LossConfig(max_tokens_per_micro_batch=32)
SAMPLES = [Sample(i // 2, "reasoning", (1, 2, 3), (4 + i, 5, 6), 1.0 if i % 2 else -1.0, (-1.0,) * 3) for i in range(7)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policy]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, "qwen3")
    layout = ParallelConfig()
    with joined_ranks(layout) as parallel:
        yield build_policy(ModelConfig(path=folder, dtype="float32"), OptimizerConfig(), layout, parallel, 10, 4)


def with_advantage(places: list[int], advantage: float) -> list[Sample]:
    return [replace(sample, advantage=advantage) if i in places else sample for i, sample in enumerate(SAMPLES)]


@pytest.mark.parametrize("place", range(7))
def test_one_sample_alone(policy: Policy, place: int) -> None:
    assert not_finite_samples(policy, with_advantage([place], math.inf), LOSS) == [place]


def test_the_first_of_two(policy: Policy) -> None:
    assert not_finite_samples(policy, with_advantage([2, 6], math.nan), LOSS) == [2]


def test_none(policy: Policy) -> None:
    assert not_finite_samples(policy, SAMPLES, LOSS) == []


def test_two_that_overflow_only_together(policy: Policy) -> None:
    """The square of a norm above 1.8e19 is above float32's largest number; each sample alone stays below."""
    twins = [replace(SAMPLES[0], advantage=1.0)] * 2
    norm = update(policy, twins, LOSS.model_copy(update={"epochs": 1}))["policy/grad_norm"]
    huge = [replace(sample, advantage=2.4e19 / norm) for sample in twins]  # together 2.4e19, alone half of it
    assert not_finite_samples(policy, huge, LOSS) == [0, 1]
