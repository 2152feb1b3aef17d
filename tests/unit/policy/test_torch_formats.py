"""torch's formats by their names alone, against torch: each reads what the other has written."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_urpo.policy.weights.rows import from_tensor, row_bytes, to_tensor
from megatron_urpo.policy.weights.torch_archive import around_tensor, find_tensor, plain_archive
from megatron_urpo.policy.weights.torch_pickle import CHECKPOINT, Call, Index, Instance, Named, dumps, read_metadata

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 1, 3, 2)])
def test_an_archive_is_torchs(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor, name = torch.randn(shape).to(dtype), str(dtype).removeprefix("torch.")
    head, tail = around_tensor(name, shape, start=13)
    ours = head + row_bytes(from_tensor(tensor)) + tail
    assert torch.load(io.BytesIO(ours), weights_only=True).equal(tensor)
    assert (13 + len(head)) % 64 == 0
    theirs = io.BytesIO()
    torch.save(tensor, theirs)
    for data in (ours, theirs.getvalue()):
        begin, found = find_tensor(io.BytesIO(b"x" * 13 + data), 13, len(data))
        assert found == (name, shape)
        assert data[begin - 13 :].startswith(bytes(row_bytes(from_tensor(tensor))))


def test_rows_and_tensors_share_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).bfloat16()
    rows = from_tensor(tensor)
    rows[1, 2] = 0
    assert tensor[1, 2] == 0
    assert to_tensor(rows, "bfloat16").data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("value", [None, {}, {"a": [1, (2.5, "x")]}])
def test_plain_values(value: object) -> None:
    assert torch.load(io.BytesIO(plain_archive(value)), weights_only=True) == value


def test_an_index_that_torch_wrote(tmp_path: Path) -> None:
    """A tensor's part has offsets; an object of bytes has none, and its key in the pickle not even the word."""
    save({"weight": torch.zeros(3, 2), "state": b"bytes"}, checkpoint_id=tmp_path, no_dist=True)
    index = read_metadata(tmp_path / ".metadata")
    assert index.storage_data.keys() == {Index("weight", (0, 0)), Index("state")}
    info = index.state_dict_metadata["weight"]
    assert (info.properties.dtype, info.size, info.chunks[0].sizes) == ("float32", (3, 2), (3, 2))


def test_an_object_with_state_and_a_call() -> None:
    size = Call(Named("torch", "Size"), ((1, 2**40),))
    found = pickle.loads(
        dumps([Instance(Named(f"{CHECKPOINT}.metadata", "MetadataIndex"), {"fqn": "a", "offset": size, "index": None})])
    )
    assert found == [MetadataIndex("a", torch.Size((1, 2**40)))]
