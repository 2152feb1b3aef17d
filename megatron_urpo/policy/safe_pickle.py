"""Reads the pickles in a checkpoint with an allow-list, before megatron-core and torch read them without one.

torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle that it loads with `pickle.load`, and objects
that are not tensors with `torch.load(weights_only=False)`: a checkpoint from a stranger could run any program. Here
every pickle of a folder is first read by a reader that knows nothing but what checkpoints are made of. Goes when torch
reads both by such a list of its own (filesystem.py:930 and default_planner.py:387 of torch 2.13.0).

What Transformer Engine keeps in its `_extra_state` is its own pickle inside a tensor of bytes, which only it reads.
"""

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from megatron_urpo.config import ConfigError

_CHECKPOINT = "torch.distributed.checkpoint"
ALLOWED = {
    (f"{_CHECKPOINT}.metadata", name)
    for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    )
} | {
    (f"{_CHECKPOINT}.planner", name)
    for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
} | {
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"), (f"{_CHECKPOINT}.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"), ("torch", "Size"), ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
}  # fmt: skip


def read_index(file: Path) -> Metadata:
    """The `.metadata` of a `torch_dist` folder. Raises what an Unpickler does of broken content, and OSError."""
    with file.open("rb") as stream:
        index = _Reader(stream).load()
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"it is {type(index).__name__} and no index")
    return index


def check_pickles(folder: Path) -> None:
    """Raises ConfigError where a pickle of the `torch_dist` folder asks for anything else, or cannot be read."""
    file = folder / ".metadata"
    try:
        metadata = read_index(file)
        file = folder / "common.pt"
        torch.load(file, map_location="cpu", weights_only=True)
        for key, kind in metadata.state_dict_metadata.items():
            place = metadata.storage_data[MetadataIndex(key)] if isinstance(kind, BytesStorageMetadata) else None
            if place is not None:
                file = folder / place.relative_path
                _check_object(file, place.offset, place.length)
        for place in metadata.storage_data.values():
            file = folder / place.relative_path
            if Path(place.relative_path).name != place.relative_path:
                raise pickle.UnpicklingError("its index points out of the folder")
    except (pickle.UnpicklingError, OSError, ValueError, KeyError, AttributeError, TypeError, EOFError) as error:
        why = " ".join(str(error).split()).partition(" In PyTorch 2.6")[0]
        raise ConfigError(
            f"run_dir: {file} is not what a checkpoint is made of ({why[:300]}); nothing of it was loaded: use one that"
            " a run of yours has written"
        ) from None


class _Reader(pickle.Unpickler):
    """Knows the classes of an index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        known = (module, name) in ALLOWED
        if module == "torch" and not known:
            known = isinstance(getattr(torch, name, None), torch.dtype)
        if not known:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}")
        return super().find_class(module, name)


def _enum_member(kind: Any, name: str) -> Enum:
    """What a pickle asks of `getattr`: early Python 3.11 (3.11.2, of Debian 12) writes members of an Enum so."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError(f"its pickle asks for attribute {name} of {kind}")
    return kind[name]


def _check_object(file: Path, offset: int, length: int) -> None:
    with file.open("rb") as stream:
        stream.seek(offset)
        torch.load(io.BytesIO(stream.read(length)), map_location="cpu", weights_only=True)
