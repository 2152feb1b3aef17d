"""The name table loses nothing: Hugging Face tensors survive joining, sharding and the way back bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.shape import FAMILIES as KNOWN
from megatron_urpo.policy.hf.shape import parse_shape, read_shape
from megatron_urpo.policy.hf.table import hf_shapes, padded_vocab_size, weight_entries
from megatron_urpo.policy.hf.tensors import join, shard, split, unshard
from tests.support.models import FAMILIES, make_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_round_trip_is_exact_and_complete(tmp_path: Path, family: str, tied: bool, tensor: int) -> None:
    kwargs = {"num_key_value_heads": 4}
    config = FAMILIES[family](tie_word_embeddings=tied, **kwargs)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    state = None
    if tensor < 4:
        make_model(tmp_path / "m", family, tied=tied)
        state = load_file(tmp_path / "m" / "model.safetensors")
    shape = read_shape(tmp_path / "m") if state else read_shape(tmp_path)
    if state is None:
        state = {name: torch.randn(*value) for name, value in hf_shapes(shape).items()}
    seen = set()
    for entry in weight_entries(shape, "torch"):
        whole = join(entry, [state[name] for name in entry.hf], shape)
        shards = [shard(entry, whole, rank, tensor) for rank in range(tensor)]
        back = split(entry, unshard(entry, shards), shape)
        for name, tensor_back in zip(entry.hf, back, strict=True):
            assert torch.equal(tensor_back, state[name])
            seen.add(name)
    assert seen == set(state)


def test_qkv_is_interleaved_by_group() -> None:
    """Two groups of two query heads, head_dim 1: rows are q0 q1 k0 v0 q2 q3 k1 v1."""
    shape = parse_shape(FAMILIES["qwen2"](hidden_size=4, num_attention_heads=4, head_dim=1).to_dict())
    (entry,) = [
        e for e in weight_entries(shape, "torch") if e.megatron == "decoder.layers.0.self_attention.linear_qkv.weight"
    ]
    q, k, v = torch.arange(4.0)[:, None], torch.tensor([[10.0], [11.0]]), torch.tensor([[20.0], [21.0]])
    whole = join(entry, [q, k, v], shape)
    assert whole[:, 0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert shard(entry, whole, 1, 2)[:, 0].tolist() == [2, 3, 11, 21]


def test_gate_and_up_are_sharded_apart() -> None:
    shape = parse_shape(FAMILIES["llama"]().to_dict())
    (entry,) = [e for e in weight_entries(shape, "torch") if e.megatron == "decoder.layers.1.mlp.linear_fc1.weight"]
    whole = join(entry, [torch.arange(4.0)[:, None], 10 + torch.arange(4.0)[:, None]], shape)
    assert shard(entry, whole, 1, 2)[:, 0].tolist() == [2, 3, 12, 13]


def test_te_names_norms_inside_linears() -> None:
    shape = parse_shape(FAMILIES["qwen3"]().to_dict())
    plain = {e.hf: e.megatron for e in weight_entries(shape, "torch")}
    te = {e.hf: e.megatron for e in weight_entries(shape, "te")}
    changed = {hf[0].split(".", 3)[-1]: name.split(".", 3)[-1] for hf, name in te.items() if name != plain[hf]}
    assert changed == {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }


def test_vocabulary_padding() -> None:
    assert [padded_vocab_size(127, n) for n in (1, 2, 4, 8)] == [127, 128, 128, 128]


def test_old_and_new_spelling_of_rope_agree() -> None:
    config = FAMILIES["llama"]().to_dict()
    new = parse_shape(config)
    rope = config.pop("rope_parameters")
    old = parse_shape(config | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope})
    assert new == old
    assert new.rope_scaling is not None
    assert new.rope_scaling.factor == 4.0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "mamba"}, r"'mamba' is not supported; known: qwen2, qwen3, llama, qwen3_moe"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "yarn"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse_shape(FAMILIES["qwen2"]().to_dict() | change)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        read_shape(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match="lacks 'num_attention_heads'"):
        read_shape(tmp_path)


def test_every_family_is_tested() -> None:
    assert set(KNOWN) == set(FAMILIES)
