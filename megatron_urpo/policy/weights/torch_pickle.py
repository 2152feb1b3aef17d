"""Pickles of torch's classes by their names alone: reading one runs nothing of theirs, writing one imports no torch.

The index of a torch_dist checkpoint, `.metadata`, is a pickle by format. An unpickler that knows the names of that
format and no others reads it, so a file from elsewhere can name nothing that would run; what it names becomes a record
of attributes. In the other direction `Named`, `Call`, `Instance` and `Persistent` stand for what torch makes of them.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_urpo.policy.weights.rows import ITEM_BYTES

CHECKPOINT = "torch.distributed.checkpoint"


class Record:
    """An object of the format: the attributes that it was written with."""


class TensorInfo(Record):
    """Of a tensor, as opposed to an object of bytes."""

    properties: "Properties"
    size: tuple[int, ...]
    chunks: list[Any]


class Properties(Record):
    dtype: str

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype, *_ = state


@dataclass(frozen=True)
class Index:
    """Names one stored part: key of the tensor, and offsets of the part in it."""

    fqn: str
    offset: tuple[int, ...] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(fqn=state["fqn"], offset=state.get("offset"))


def _value(value: Any) -> Any:
    """In the place of classes with one value: shapes, members of enumerations."""
    return value


def _member(kind: Any, name: str) -> str:
    """What a pickle asks of `getattr`: early Python 3.11 (3.11.2, of Debian 12) writes members of an Enum so."""
    if kind is not _value or name not in _MEMBERS:
        raise pickle.UnpicklingError(f"it asks for attribute {name} of {kind}, which is no part of the format")
    return name


_MEMBERS = {
    "TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT",  # of _MEM_FORMAT_ENCODING
    "TENSOR", "SHARD", "BYTE_IO",  # of WriteItemType
}  # fmt: skip
_NAMES: dict[tuple[str, str], Any] = {
    **{(f"{CHECKPOINT}.metadata", name): Record for name in (
        "Metadata", "ChunkStorageMetadata", "BytesStorageMetadata", "StorageMeta",
    )},
    **{(f"{CHECKPOINT}.planner", name): Record for name in (
        "SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData",
    )},
    **{(f"{CHECKPOINT}.filesystem", name): Record for name in ("_StorageInfo", "_StoragePrefix")},
    (f"{CHECKPOINT}.metadata", "TensorStorageMetadata"): TensorInfo,
    (f"{CHECKPOINT}.metadata", "TensorProperties"): Properties,
    (f"{CHECKPOINT}.metadata", "MetadataIndex"): Index,
    (f"{CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"): _value,
    (f"{CHECKPOINT}.planner", "WriteItemType"): _value,
    ("torch.serialization", "_get_layout"): _value,
    ("builtins", "getattr"): _member,
    ("torch", "Size"): tuple,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", dtype): dtype for dtype in (
        *ITEM_BYTES, "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8", "bool",
    )},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of the format")
        return _NAMES[module, name]


def read_metadata(path: Path) -> Any:
    """Raises OSError, or what a broken pickle makes `pickle` raise."""
    with path.open("rb") as file:
        return _Unpickler(file).load()


@dataclass(frozen=True)
class Named:
    """A class or function of another module."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    function: Named
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Instance:
    """An object of `kind` with its state; None where it has none."""

    kind: Named
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """What only whoever loads the pickle can find, by its identifier."""

    identifier: tuple[Any, ...]


def dumps(value: Any) -> bytes:
    """A pickle of plain values and of the four above."""
    return pickle.PROTO + b"\x02" + b"".join(_opcodes(value)) + pickle.STOP


def _opcodes(value: Any) -> Iterator[bytes]:
    """What leaves `value` on the unpickler's stack."""
    if isinstance(value, Named):
        yield pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    elif isinstance(value, Call):
        yield from _opcodes(value.function)
        yield from _opcodes(value.arguments)
        yield pickle.REDUCE
    elif isinstance(value, Instance):
        yield from _opcodes(value.kind)
        yield pickle.EMPTY_TUPLE + pickle.NEWOBJ
        if value.state is not None:
            yield from _opcodes(value.state)
            yield pickle.BUILD
    elif isinstance(value, Persistent):
        yield from _opcodes(value.identifier)
        yield pickle.BINPERSID
    elif isinstance(value, dict):
        yield pickle.EMPTY_DICT + pickle.MARK
        for pair in value.items():
            yield from _opcodes(pair[0])
            yield from _opcodes(pair[1])
        yield pickle.SETITEMS
    elif isinstance(value, list | tuple):
        yield pickle.EMPTY_LIST + pickle.MARK if isinstance(value, list) else pickle.MARK
        for item in value:
            yield from _opcodes(item)
        yield pickle.APPENDS if isinstance(value, list) else pickle.TUPLE
    else:
        yield pickle.dumps(value, 2)[2:-1]  # without the mark of the protocol and the stop
