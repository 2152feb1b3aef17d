"""The multiple that the number of a micro-batch's tokens must be of."""

FP8_TILE = {"delayed": 16, "tensorwise": 16, "mxfp8": 32, "blockwise": 128}
"""The multiple that every dimension of a matrix product must be of, by recipe.

16: FP8 tensor cores; Transformer Engine asks for a last dimension in sixteens (`assert_dim_for_fp8_exec`), and in the
weight gradient that dimension is the tokens. megatron-core's `get_fp8_align_size` says 16 too.
32: MXFP8 shares a scale among 32 values along either dimension and refuses a rest (Transformer Engine's guide on MXFP8;
`get_fp8_align_size`).
128: the blocks of Float8BlockScaling; `Float8BlockQuantizer.is_quantizable` is false where a dimension leaves a rest.
"""


def token_alignment(fp8_recipe: str | None, tensor_parallel: int, sequence_parallel: bool) -> int:
    """The least number of tokens whose multiples every rank can work on. `fp8_recipe`: None where FP8 is off.

    Sequence parallelism cuts the tokens evenly over the tensor-parallel ranks, and each rank quantises its own part, so
    the part has to be whole tiles. Without it every rank has all tokens. Raises KeyError for an unknown recipe.
    """
    tile = 1 if fp8_recipe is None else FP8_TILE[fp8_recipe]
    return tile * (tensor_parallel if sequence_parallel else 1)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
