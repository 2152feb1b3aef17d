"""A folder's tensors against its config.json: what is implied is what transformers really has."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.folder import WeightFolder
from megatron_urpo.policy.hf.shape import read_shape
from megatron_urpo.policy.hf.table import hf_shapes
from tests.support.models import FAMILIES, make_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_implied_shapes_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    make_model(tmp_path, family, tied=tied)
    theirs = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert hf_shapes(read_shape(tmp_path)) == theirs
    WeightFolder(tmp_path).check_holds(theirs)


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    make_model(tmp_path, "qwen2")
    shapes = hf_shapes(read_shape(tmp_path))
    with pytest.raises(ConfigError, match=r"'model.norm.weight' .* shape \(64,\), config.json implies \(65,\)"):
        WeightFolder(tmp_path).check_holds({**shapes, "model.norm.weight": (65,)})
    with pytest.raises(ConfigError, match=r"no tensor 'model.extra', which its config.json implies"):
        WeightFolder(tmp_path).check_holds({**shapes, "model.extra": (1,)})
