"""Packing keeps each sequence whole and predicts exactly its targets; padded attention equals attention one by one."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_urpo.policy.packing import TokenSequence, pack
from megatron_urpo.policy.spec import PackedAttention, padding_plan

CPU = torch.device("cpu")


def test_two_sequences_by_hand() -> None:
    batch = pack(
        [TokenSequence([5, 6, 7, 8], 2, {"w": [0.5, 1.0]}), TokenSequence([1, 2, 3], 1, {"w": [2.0, 3.0]})],
        4,
        CPU,
        ["w"],
    )
    assert batch.tokens_1T.tolist() == [[5, 6, 7, 1, 2, 0, 0, 0]]
    assert batch.positions_1T.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.packed.cu_seqlens_q.tolist() == [0, 3, 5, 8]
    assert batch.predicting_R.tolist() == [1, 2, 3, 4]
    assert batch.targets_R.tolist() == [7, 8, 2, 3]
    assert batch.values["w"].tolist() == [0.5, 1.0, 2.0, 3.0]
    assert batch.num_padding == 3


def test_no_sequences_make_padding_only() -> None:
    batch = pack([], 4, CPU, ["w"])
    assert batch.tokens_1T.tolist() == [[0, 0, 0, 0]]
    assert batch.targets_R.numel() == batch.predicting_R.numel() == batch.values["w"].numel() == 0


sequences = st.lists(
    st.tuples(st.lists(st.integers(0, 99), min_size=2, max_size=30), st.integers(1, 30)).map(
        lambda pair: TokenSequence(pair[0], min(pair[1], len(pair[0]) - 1))
    ),
    min_size=1,
    max_size=8,
)


@given(sequences, st.integers(1, 8))
def test_predicted_tokens_follow_their_predecessors(given_sequences: list[TokenSequence], align: int) -> None:
    batch = pack(given_sequences, align, CPU)
    total = batch.tokens_1T.shape[1]
    assert total % align == 0
    assert total - batch.num_padding == sum(s.num_input_tokens for s in given_sequences)
    pairs = list(zip(batch.tokens_1T[0][batch.predicting_R].tolist(), batch.targets_R.tolist(), strict=True))
    want = [
        (s.token_ids[i - 1], s.token_ids[i]) for s in given_sequences for i in range(s.first_target, len(s.token_ids))
    ]
    assert pairs == want


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(0, 2**31))
def test_packed_attention_equals_one_by_one(lengths: list[int], seed: int) -> None:
    heads, groups, dim = 4, 2, 8
    torch.manual_seed(seed)
    total = sum(lengths)
    query = torch.randn(total, heads, dim, requires_grad=True)
    key, value = (torch.randn(total, groups, dim, requires_grad=True) for _ in range(2))
    packed = pack([TokenSequence([0] * (n + 1), 1) for n in lengths], 1, CPU).packed
    config = TransformerConfig(num_layers=1, hidden_size=heads * dim, num_attention_heads=heads)
    module = PackedAttention(config, 1, None, "self")
    got = module(query, key, value, None, packed_seq_params=packed)
    want = torch.cat(
        [
            F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part), is_causal=True, enable_gqa=True)[
                0
            ].transpose(0, 1)
            for part in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        ]
    ).flatten(1)
    tolerance = 40 * 8 * torch.finfo(torch.float32).eps * 10  # sums of at most 40 products over 8 channels
    assert (got - want).abs().max() < tolerance
    weights = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), (query, key, value)),
        torch.autograd.grad((want * weights).sum(), (query, key, value)),
        strict=True,
    ):
        assert (a - b).abs().max() < tolerance * 10


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_less_than_half_of_the_plan_is_padding(lengths: list[int]) -> None:
    shapes, pad, unpad = padding_plan(pack([TokenSequence([0] * (n + 1), 1) for n in lengths], 1, CPU).packed)
    assert len(pad) == sum(rows * length for rows, length in shapes) < 2 * sum(lengths)
    assert pad[unpad].tolist() == list(range(sum(lengths)))
