"""The alignment of token counts, by hand and against megatron-core's own idea of it."""

import pytest
from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import get_fp8_align_size

from megatron_urpo.algorithm.alignment import FP8_TILE, round_up, token_alignment


@pytest.mark.parametrize(
    ("recipe", "tensor_parallel", "sequence_parallel", "want"),
    [
        (None, 1, False, 1),
        (None, 4, False, 1),  # every rank has all tokens
        (None, 4, True, 4),
        ("delayed", 1, False, 16),
        ("tensorwise", 4, False, 16),
        ("tensorwise", 4, True, 64),
        ("mxfp8", 1, False, 32),
        ("mxfp8", 4, True, 128),  # 31,936 tokens are whole sixteens on each of 4 ranks, and 7,984 no multiple of 32
        ("blockwise", 2, False, 128),
        ("blockwise", 2, True, 256),
    ],
)
def test_by_hand(recipe: str | None, tensor_parallel: int, sequence_parallel: bool, want: int) -> None:
    assert token_alignment(recipe, tensor_parallel, sequence_parallel) == want


def test_an_unknown_recipe_is_no_alignment_of_one() -> None:
    with pytest.raises(KeyError):
        token_alignment("custom", 1, False)


def test_every_recipe_of_megatron_core_but_custom_has_whole_tiles_of_its_own() -> None:
    assert set(FP8_TILE) == {recipe.value for recipe in Fp8Recipe} - {"custom"}
    for recipe, tile in FP8_TILE.items():
        assert tile % get_fp8_align_size(Fp8Recipe(recipe)) == 0


@pytest.mark.parametrize(("value", "want"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_round_up(value: int, want: int) -> None:
    assert round_up(value, 16) == want
