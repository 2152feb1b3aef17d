"""The reader of a checkpoint's index: what torch and early Pythons write, and what is no part of the format."""

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_urpo.policy.weights.torch_pickle import TensorInfo, read_metadata


class EarlyPickler(pickle.Pickler):
    """Writes members of an Enum as Python 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


class Asks:
    def __init__(self, of: Any, name: str) -> None:
        self.asked = (of, name)

    def __reduce__(self) -> Any:
        return getattr, self.asked


@pytest.mark.parametrize("pickler", [pickle.Pickler, EarlyPickler])
def test_an_index_is_read(tmp_path: Path, pickler: type[pickle.Pickler]) -> None:
    chunk = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([4, 2]))
    whole = TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([4, 2]), [chunk])
    stream = io.BytesIO()
    pickler(stream).dump(Metadata({"weight": whole}))
    assert b"getattr" in stream.getvalue() or pickler is pickle.Pickler
    (tmp_path / "index").write_bytes(stream.getvalue())
    found = read_metadata(tmp_path / "index").state_dict_metadata["weight"]
    assert isinstance(found, TensorInfo)
    assert (found.properties.dtype, found.size, found.chunks[0].sizes) == ("bfloat16", (4, 2), (4, 2))


@pytest.mark.parametrize(
    ("of", "name"), [(_MEM_FORMAT_ENCODING, "__class__"), (_MEM_FORMAT_ENCODING, "mro"), (Metadata, "__init__")]
)
def test_no_other_attribute_can_be_asked_for(tmp_path: Path, of: Any, name: str) -> None:
    (tmp_path / "index").write_bytes(pickle.dumps(Asks(of, name)))
    with pytest.raises(pickle.UnpicklingError, match=f"attribute {name}"):
        read_metadata(tmp_path / "index")
