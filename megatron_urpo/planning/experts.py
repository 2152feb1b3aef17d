"""Bytes of a layer's experts: what a pass keeps for the way back, and what it needs for a moment.

Every token goes to `K` of `E` experts, and is copied for each of them, so most of this is `K` times a dense layer's.
How evenly experts are chosen does not matter: tensor-parallel ranks hold a part of every expert and see all tokens.
With sequence parallelism the router sees a rank's own tokens, the experts those of all.
"""

from megatron_urpo.policy.hf.shape import ModelShape

INDEX_BYTES = 8
FLOAT32_BYTES = 4


def expert_bytes(shape: ModelShape, tensor: int, sharing: int, width: int, fused: bool) -> int:
    """Kept for each token by one layer, behind its norm, which the router reads as well.

    `sharing`: ranks that share the tokens outside experts. `fused`: the gated activation and the router's weight are
    one kernel, as on GPUs, which keeps what goes in and what comes out; else each of its steps keeps its own.
    """
    assert shape.num_experts is not None
    assert shape.experts_per_token is not None
    experts, chosen, wide = shape.num_experts, shape.experts_per_token, shape.ffn_hidden_size // tensor
    softmax = FLOAT32_BYTES * (chosen if shape.normalized_router else experts)
    router = (softmax + INDEX_BYTES * chosen) // sharing
    # Weights and map of all experts, which the chosen ones are picked from, and where each copy came from.
    permutation = experts * (width + 1) + INDEX_BYTES * chosen
    # A copy of the token, its weight, gate and value, and their product; unfused with three steps between.
    return router + permutation + chosen * (shape.hidden_size + 1 + (3 if fused else 6) * wide) * width


def expert_working(shape: ModelShape, tensor: int, width: int) -> int:
    """Gradients of a layer's routed tokens, for each token: outside experts those of output and input, inside all."""
    assert shape.experts_per_token is not None
    return shape.experts_per_token * (2 * shape.hidden_size + 3 * shape.ffn_hidden_size // tensor) * width
