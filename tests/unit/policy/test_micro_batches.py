"""A rank's share of a batch: within the cap with its padding, aligned as the layout asks, balanced by work."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_urpo.config.model import Fp8Config, ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy.model import transformer_config
from megatron_urpo.policy.packing import TokenSequence
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from tests.support.models import make_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policy]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, "qwen3")
    with joined_ranks(ParallelConfig()) as parallel:
        model = ModelConfig(path=folder, dtype="float32")
        yield build_policy(model, OptimizerConfig(), ParallelConfig(), parallel, 10, 1)


def at(policy: Policy, fp8: Fp8Config, *, tensor: int = 1, sequence: bool = False, **place: int) -> Policy:
    """The same weights as they would be held in another layout, on another rank."""
    layout = ParallelConfig(tensor=tensor, sequence=sequence)
    config = transformer_config(policy.part.shape, layout, fp8, torch.bfloat16)
    part = replace(policy.part, config=config)
    return replace(policy, part=part, parallel=replace(policy.parallel, tensor=tensor, **place))


@pytest.mark.parametrize(
    ("fp8", "tensor", "sequence", "want"),
    [
        (Fp8Config(), 1, False, 1),
        (Fp8Config(recipe="mxfp8"), 1, False, 1),  # a recipe alone turns nothing on
        (Fp8Config(), 2, False, 1),
        (Fp8Config(), 2, True, 2),
        (Fp8Config(format="hybrid"), 2, False, 16),
        (Fp8Config(format="hybrid"), 2, True, 32),
        (Fp8Config(format="e4m3", recipe="mxfp8"), 1, False, 32),
        (Fp8Config(format="e4m3", recipe="blockwise"), 2, True, 256),
    ],
)
def test_alignment_follows_recipe_and_layout(
    policy: Policy, fp8: Fp8Config, tensor: int, sequence: bool, want: int
) -> None:
    assert at(policy, fp8, tensor=tensor, sequence=sequence).alignment == want


def test_padding_stays_below_the_cap(policy: Policy) -> None:
    sequences = [TokenSequence([index] * 26, 20) for index in range(40)]  # 25 tokens each are read
    # 100 is no multiple of 16: a micro-batch may hold 96, which are three sequences padded from 75 to 80.
    batches = at(policy, Fp8Config(format="hybrid")).micro_batches(sequences, 100, [])
    assert sum(batch.tokens_1T.numel() - batch.num_padding for batch in batches) == 40 * 25
    assert {batch.tokens_1T.numel() % 16 for batch in batches} == {0}
    assert max(batch.tokens_1T.numel() for batch in batches) <= 100
    assert len(batches) == 14  # 13 of three and one of one, or as even


def test_ranks_share_the_work_and_not_the_tokens(policy: Policy) -> None:
    """The rank with the one long sequence, whose attention is dear, has fewer tokens than the one with the short."""
    sequences = [TokenSequence([1] * 240, 200)] + [TokenSequence([1] * 10, 6) for _ in range(40)]
    num_tokens, num_sequences = [], 0
    for rank in range(2):
        (batch,) = at(policy, Fp8Config(), data=2, data_rank=rank).micro_batches(sequences, 1000, [])
        num_tokens.append(batch.tokens_1T.numel())
        num_sequences += int((batch.positions_1T == 0).sum())
    assert num_sequences == len(sequences)
    assert max(num_tokens) - min(num_tokens) > 3 * 9  # even tokens would differ by less than two short sequences
