"""Round trips are the same bits; what cannot be converted is one line and leaves nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

from megatron_urpo.config import ConfigError
from megatron_urpo.conversion import convert
from megatron_urpo.conversion.convert import Layout, hf_to_megatron, megatron_to_hf
from megatron_urpo.conversion.verify import verify
from megatron_urpo.policy.weights import output, writers
from tests.support.full_disk import full_disk
from tests.support.models import FAMILIES, make_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_the_same_bits(tmp_path: Path, family: str, tied: bool) -> None:
    """A vocabulary of 127, head_dim unlike hidden / heads in two families; torch_dist, and shards at six layouts."""
    hf = tmp_path / "hf"
    make_model(hf, family, tied=tied, num_key_value_heads=4)
    layouts = [Layout(), *(Layout("shards", t, p, s) for t in (1, 2, 4) for p, s in ((1, "torch"), (2, "te")))]
    original = load_file(hf / "model.safetensors")
    for number, layout in enumerate(layouts):
        there, back = tmp_path / f"there{number}", tmp_path / f"back{number}"
        hf_to_megatron(hf, there, layout)
        megatron_to_hf(there, back, shard_bytes=100_000)
        files = sorted(back.glob("model-*.safetensors"))
        found = {name: tensor for file in files for name, tensor in load_file(file).items()}
        assert len(files) > 1
        assert found.keys() == original.keys()
        assert all((found[name] == original[name]).all() for name in original)
        assert verify(there, back)[0].lines == []
        manifests = [json.loads((folder / "manifest.json").read_text())["tensors"] for folder in (there, back)]
        assert manifests[0] == manifests[1]


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    hf_to_megatron(tmp_path / "hf", tmp_path / "there")
    file = tmp_path / "there" / "weights" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    lines = verify(tmp_path / "hf", tmp_path / "there")[0].lines
    assert len(lines) == 2, "the value, and the manifest"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "layout", "part"),
    [
        (lambda hf: (hf / "config.json").unlink(), Layout(), "no config.json"),
        (lambda hf: cut(hf / "model.safetensors"), Layout(), "missing or not readable"),
        (lambda hf: (hf / "config.json").write_text('{"model_type": "mamba"}'), Layout(), "'mamba' is not supported"),
        (lambda hf: None, Layout("shards", 3, 1), "--tp: 3 does not divide"),
        (lambda hf: None, Layout("shards", 1, 3), "--pp: 3 does not divide"),
        (lambda hf: (hf.parent / "out").mkdir(), Layout(), "exists; give another path"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, damage: Callable[[Path], object], layout: Layout, part: str) -> None:
    make_model(tmp_path / "hf", "qwen2")
    damage(tmp_path / "hf")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=part) as error:
        hf_to_megatron(tmp_path / "hf", tmp_path / "out", layout)
    assert "\n" not in str(error.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("layout", [Layout(), Layout("shards", 2, 1)])
def test_a_full_disk_leaves_nothing(tmp_path: Path, layout: Layout) -> None:
    make_model(tmp_path / "hf", "qwen2")
    with full_disk(50_000), pytest.raises(ConfigError, match="does not fit on its disk"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_pieces_smaller_than_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, parts and files, none of which ends where another does; what is on disk is synced in between."""
    monkeypatch.setattr(convert, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(writers, "PART_BYTES", 5000)
    monkeypatch.setattr(writers, "FILE_BYTES", 40_000)
    monkeypatch.setattr(output, "SYNC_BYTES", 20_000)
    make_model(tmp_path / "hf", "qwen3_moe")
    hf_to_megatron(tmp_path / "hf", tmp_path / "there")
    assert len(list((tmp_path / "there" / "weights").glob("*.distcp"))) > 2
    assert read_by_torch(tmp_path / "there" / "weights", "embedding.word_embeddings.weight").equal(
        load_file(tmp_path / "hf" / "model.safetensors")["model.embed_tokens.weight"]
    )
    megatron_to_hf(tmp_path / "there", tmp_path / "back")
    assert verify(tmp_path / "hf", tmp_path / "back")[0].lines == []


def read_by_torch(folder: Path, key: str) -> torch.Tensor:
    """By torch's own reader of the format, which must find in the index what it would have written itself."""
    reader = FileSystemReader(folder)
    index = reader.read_metadata()
    info = index.state_dict_metadata[key]
    assert isinstance(info, TensorStorageMetadata)
    assert info.properties == TensorProperties.create_from_tensor(torch.empty(0, dtype=info.properties.dtype))
    target = torch.full(info.size, torch.nan, dtype=info.properties.dtype)
    load({key: target}, storage_reader=reader, no_dist=True)
    return target


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_are_rounded_as_torch_rounds(tmp_path: Path, dtype: str) -> None:
    make_model(tmp_path / "hf", "llama")
    hf_to_megatron(tmp_path / "hf", tmp_path / "there", dtype=dtype)
    megatron_to_hf(tmp_path / "there", tmp_path / "back")
    original, back = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert {tensor.dtype for tensor in back.values()} == {getattr(torch, dtype)}
    assert all(back[name].equal(tensor.to(getattr(torch, dtype))) for name, tensor in original.items())
