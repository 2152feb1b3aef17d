"""What a sequence costs: attention is quadratic in its length, all else is linear, so equal tokens are unequal work."""


def sequence_flops(
    num_tokens: int,
    num_targets: int,
    *,
    num_layers: int,
    hidden_size: int,
    ffn_hidden_size: int,
    num_heads: int,
    num_query_groups: int,
    head_dim: int,
    vocab_size: int,
) -> int:
    """Floating-point operations of one forward pass of a decoder with SwiGLU and grouped-query attention.

    `num_tokens` are read, `num_targets` of their successors predicted; only those meet the output layer. Counted are
    the matrix products, a multiplication and an addition for each pair of factors (Narayanan et al. 2021,
    arXiv:2104.04473, appendix, with attention over the causal half). Backward costs twice that for every part, so it
    changes no ratio. An integer: sums of costs are exact in any order.
    """
    queries, keys_values = num_heads * head_dim, 2 * num_query_groups * head_dim
    attention_weights = hidden_size * (queries + keys_values) + queries * hidden_size
    feed_forward_weights = 3 * hidden_size * ffn_hidden_size  # gate, up, down
    seen_pairs = num_tokens * (num_tokens + 1) // 2  # a token attends to itself and those before it
    pair_products = 2 * queries  # query times key, then probability times value
    layer = num_tokens * (attention_weights + feed_forward_weights) + seen_pairs * pair_products
    return 2 * (num_layers * layer + num_targets * hidden_size * vocab_size)
