"""FP8 matrix products in the layers of Transformer Engine: what is refused, and what megatron-core is told.

The embedding, the output layer (`logprobs.py`), the norms and attention itself stay in bfloat16, and so do the weights
between steps; the optimizer's masters stay in float32. So checkpoints and exported weights do not know of FP8.
"""

from typing import Any

from megatron_urpo.algorithm.alignment import FP8_TILE
from megatron_urpo.config import ConfigError
from megatron_urpo.config.model import Fp8Config, ModelConfig, ParallelConfig
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.spec import SpecName

NO_FP8 = Fp8Config(format="none")


def check_fp8(fp8: Fp8Config, model: ModelConfig, layout: ParallelConfig, shape: ModelShape, spec: SpecName) -> None:
    """Raises ConfigError where `fp8` asks for what these layers, this dtype or this model's dimensions cannot give."""
    if fp8.format == "none":
        return
    if model.dtype != "bfloat16":
        raise ConfigError(
            f"fp8.format: {fp8.format} with model.dtype {model.dtype}; FP8 products stand beside bfloat16 weights and"
            " activations; set model.dtype to bfloat16 or fp8.format to none"
        )
    if spec != "te":
        how = "chosen" if model.spec == "torch" else "all that there is without Transformer Engine and a CUDA GPU"
        raise ConfigError(
            f"fp8.format: {fp8.format} needs Transformer Engine's layers, but model.spec {model.spec} gives the torch"
            f" ones ({how}); set model.spec to `te` on a GPU machine with the `gpu` extra, or fp8.format to none"
        )
    tile, tensor = FP8_TILE[fp8.recipe], layout.tensor
    queries, keys_values = shape.num_heads * shape.head_dim, 2 * shape.num_query_groups * shape.head_dim
    for what, number in (
        ("hidden channels", shape.hidden_size),
        ("query, key and value channels of a tensor-parallel rank", (queries + keys_values) // tensor),
        ("attention output channels of a tensor-parallel rank", queries // tensor),
        ("feed-forward channels of a tensor-parallel rank", shape.ffn_hidden_size // tensor),
    ):
        if number % tile:
            raise ConfigError(
                f"fp8.recipe: {fp8.recipe} multiplies in tiles of {tile}, but the model's {number} {what} are no"
                f" multiple of that ({number} / {tile} = {number / tile:.2f}, parallel.tensor {tensor}); choose another"
                " recipe or parallel.tensor, or set fp8.format to none"
            )


def fp8_arguments(fp8: Fp8Config) -> dict[str, Any]:
    """What megatron-core's TransformerConfig is given."""
    return {} if fp8.format == "none" else {"fp8": fp8.format, "fp8_recipe": fp8.recipe}
