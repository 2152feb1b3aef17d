"""The count of operations: by hand, and against torch's own counter on real models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from megatron_urpo.algorithm.cost import sequence_flops
from tests.support.models import DENSE, FAMILIES


def test_by_hand() -> None:
    shape = {
        "num_layers": 1, "hidden_size": 2, "ffn_hidden_size": 3, "num_heads": 2, "num_query_groups": 1, "head_dim": 1,
        "vocab_size": 5,
    }  # fmt: skip
    # Weights: q 2x2, k and v 2x1 each, o 2x2, gate, up and down 2x3 each = 30; output layer 2x5 = 10.
    # Attention: a pair costs 2 heads x 1 channel, twice; 3 tokens see 1 + 2 + 3 = 6 pairs.
    assert sequence_flops(3, 0, **shape) == 2 * (3 * 30 + 6 * 4)
    assert sequence_flops(3, 2, **shape) == 2 * (3 * 30 + 6 * 4 + 2 * 10)


@pytest.mark.parametrize("num_tokens", [1, 40])
@pytest.mark.parametrize("family", DENSE)
def test_equals_what_torch_counts(family: str, num_tokens: int) -> None:
    """torch counts attention over the whole square; the causal mask hides n (n - 1) / 2 of its pairs."""
    config = FAMILIES[family](tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    got = sequence_flops(
        num_tokens,
        num_tokens,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=heads,
        num_query_groups=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
    )
    hidden = num_tokens * (num_tokens - 1) // 2 * 4 * heads * head_dim * config.num_hidden_layers
    assert got + hidden == counter.get_total_flops()
