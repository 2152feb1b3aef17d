"""The one table between Hugging Face names and Megatron's: every weight of a model, and the shape of every tensor.

Loader, export and converters all walk `weight_entries`. What is done with each kind of weight is in tensors.py for
whole tensors, in regions.py for ranges of rows.
"""

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.entries import WeightEntry, whole_model
from megatron_urpo.policy.hf.families import FAMILIES

__all__ = ["WeightEntry", "hf_shapes", "padded_vocab_size", "weight_entries"]


def weight_entries(shape: ModelShape, spec: str) -> list[WeightEntry]:
    """Every weight of the model in its order of use. `spec`: `torch` or `te`, which fuses norms into linears."""
    return whole_model(shape, FAMILIES[shape.family].layer(shape, spec))


def hf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The shape of every Hugging Face tensor that the model has."""
    wide, queries, values = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    by_ending: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (shape.vocab_size, wide),
        "lm_head.weight": (shape.vocab_size, wide),
        "q_proj.weight": (queries, wide),
        "k_proj.weight": (values, wide),
        "v_proj.weight": (values, wide),
        "q_proj.bias": (queries,),
        "k_proj.bias": (values,),
        "v_proj.bias": (values,),
        "o_proj.weight": (wide, queries),
        "gate.weight": (shape.num_experts or 0, wide),
        "gate_proj.weight": (shape.ffn_hidden_size, wide),
        "up_proj.weight": (shape.ffn_hidden_size, wide),
        "down_proj.weight": (wide, shape.ffn_hidden_size),
        "q_norm.weight": (shape.head_dim,),
        "k_norm.weight": (shape.head_dim,),
    }
    names = (name for entry in weight_entries(shape, "torch") for name in entry.hf)
    # What is left are the norms over the residual stream.
    return {name: by_ending.get(".".join(name.split(".")[-2:]), (wide,)) for name in names}


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """The smallest size not below `vocab_size` that tensor-parallel ranks can share."""
    return (vocab_size + tensor - 1) // tensor * tensor
