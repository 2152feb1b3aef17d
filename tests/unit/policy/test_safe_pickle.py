"""The reader of a checkpoint's index: what old Pythons write, and what would run."""

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

from megatron_urpo.policy.safe_pickle import read_index


class OldPickler(pickle.Pickler):
    """Writes members of an Enum as Python 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


class Asks:
    def __init__(self, of: Any, name: str) -> None:
        self.asked = (of, name)

    def __reduce__(self) -> Any:
        return getattr, self.asked


def an_index() -> Metadata:
    whole = TensorStorageMetadata(
        TensorProperties(torch.bfloat16),
        torch.Size([4, 2]),
        [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([4, 2]))],
    )
    return Metadata({"weight": whole})


def test_members_of_an_enum_as_old_pythons_write_them(tmp_path: Path) -> None:
    stream = io.BytesIO()
    OldPickler(stream).dump(an_index())
    assert b"getattr" in stream.getvalue()
    (tmp_path / "old").write_bytes(stream.getvalue())
    assert read_index(tmp_path / "old") == an_index()


@pytest.mark.parametrize(
    ("of", "name"), [(_MEM_FORMAT_ENCODING, "__class__"), (_MEM_FORMAT_ENCODING, "mro"), (Metadata, "__init__")]
)
def test_no_other_attribute_can_be_asked_for(tmp_path: Path, of: Any, name: str) -> None:
    (tmp_path / "index").write_bytes(pickle.dumps(Asks(of, name)))
    with pytest.raises(pickle.UnpicklingError, match=f"attribute {name}"):
        read_index(tmp_path / "index")


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(pickle.UnpicklingError, match="dict and no index"):
        read_index(tmp_path / "index")
