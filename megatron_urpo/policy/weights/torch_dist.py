"""Reading the model's weights out of a checkpoint in megatron-core's `torch_dist` format, without torch's own loader.

`.metadata` is a pickle by format; `safe_pickle.py` reads it, so that a file from elsewhere can name nothing that would
run. Each tensor is a small zip archive as torch.save writes it; its bytes are mapped where they lie, and its own pickle
is read in the same way. `common.pt` is not read.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import Region, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry
from megatron_urpo.policy.safe_pickle import read_index
from megatron_urpo.policy.weights.mapped import map_tensor
from megatron_urpo.policy.weights.source import Part, RegionWeights

METADATA = ".metadata"
_STORAGES = {
    "BFloat16Storage": torch.bfloat16, "HalfStorage": torch.float16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}  # fmt: skip


class _TensorUnpickler(pickle.Unpickler):
    """Gives (dtype, offset in the storage, shape, strides) of the one tensor in a torch.save archive."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> torch.dtype:
        dtype = pid[1]
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it holds a storage of {dtype!r}")
        return dtype


@dataclass(frozen=True)
class _Chunk:
    """Offsets and sizes in the stacked tensor, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


class TorchDistWeights(RegionWeights):
    def __init__(self, folder: Path, shape: ModelShape):
        super().__init__(folder, shape)
        path = folder / METADATA
        try:
            self._metadata = read_index(path)
            self._dtypes = {
                key: (value.properties.dtype, tuple(value.size))
                for key, value in self._metadata.state_dict_metadata.items()
                if isinstance(value, metadata.TensorStorageMetadata)
            }
            self._ends = self._read_ends(folder)
            self._chunks = self._read_chunks(folder)
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model.path: {path} is not the index of a torch_dist checkpoint ({' '.join(str(error).split())});"
                " take another checkpoint"
            ) from None
        self._opened: dict[tuple[Path, int], tuple[int, torch.dtype, tuple[int, ...]]] = {}

    def _read_ends(self, folder: Path) -> dict[Path, int]:
        """How long each file must be."""
        ends: dict[Path, int] = {}
        for info in self._metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise ValueError(f"it points to {info.relative_path}, outside of its folder")
            path = folder / info.relative_path
            ends[path] = max(ends.get(path, 0), info.offset + info.length)
        return ends

    def _read_chunks(self, folder: Path) -> dict[str, dict[tuple[int, ...], list[_Chunk]]]:
        """By key and place in the stack."""
        depths = {entry.key: len(entry.stack) for entry in self.entries.values()}
        chunks: dict[str, dict[tuple[int, ...], list[_Chunk]]] = {}
        for key, depth in depths.items():
            stored = self._metadata.state_dict_metadata.get(key)
            if not isinstance(stored, metadata.TensorStorageMetadata):
                continue
            for chunk in stored.chunks:
                info = self._metadata.storage_data[metadata.MetadataIndex(key, chunk.offsets)]
                offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
                found = _Chunk(offsets, sizes, folder / info.relative_path, info.offset, info.length)
                for index in _places(offsets[:depth], sizes[:depth]):
                    chunks.setdefault(key, {}).setdefault(index, []).append(found)
        return chunks

    def names(self) -> set[str]:
        known = {entry.key for entry in self.entries.values()}
        model = (key for key in self._dtypes if not key.startswith("optimizer."))
        return {name for name, entry in self.entries.items() if entry.index in self._chunks.get(entry.key, {})} | {
            key for key in model if key not in known
        }

    def dtype(self, name: str) -> torch.dtype:
        return self._stored(self.entries[name])[0]

    def _stored(self, entry: WeightEntry) -> tuple[torch.dtype, tuple[int, ...]]:
        if entry.index not in self._chunks.get(entry.key, {}):
            raise ConfigError(
                f"model.path: {self.place} holds no {entry.key!r} at {entry.index}, which its config.json implies; give"
                " the checkpoint of this model"
            )
        dtype, size = self._dtypes[entry.key]
        return dtype, size

    def check(self) -> None:
        for entry in dict.fromkeys(self.entries.values()):
            want, (_, stored) = whole_shape(entry, self.shapes), self._stored(entry)
            depth = len(entry.stack)
            rows = stored[depth] >= want[0] if entry.kind == "vocab" else stored[depth] == want[0]
            if stored[:depth] != entry.stack or not rows or stored[depth + 1 :] != want[1:]:
                raise ConfigError(
                    f"model.path: {entry.key!r} in {self.place} has shape {stored}, config.json implies"
                    f" {(*entry.stack, *want)}; give the config.json that belongs to the weights"
                )
        for path, end in self._ends.items():  # of all records: a loader of megatron-core reads what is no weight, too
            size = path.stat().st_size if path.is_file() else -1
            if size < end:
                what = "is missing" if size < 0 else f"ends before byte {end}"
                raise ConfigError(f"model.path: {path} {what}; copy the checkpoint again")

    def parts(self, entry: WeightEntry) -> Iterator[Part]:
        self._stored(entry)
        depth, limit = len(entry.stack), whole_shape(entry, self.shapes)[0]
        for chunk in self._chunks[entry.key][entry.index]:
            row, *column = chunk.offsets[depth:]
            rows, *columns = chunk.sizes[depth:]
            held = max(0, min(rows, limit - row))  # behind it is padding of the vocabulary
            within = tuple(i - o for i, o in zip(entry.index, chunk.offsets, strict=False))
            region = Region(0, row, held, column[0] if column else 0, columns[0] if columns else None)
            yield region, partial(self._read, chunk, within)

    def _read(self, chunk: _Chunk, within: tuple[int, ...], start: int, stop: int) -> Tensor:
        data, dtype, shape = self._locate(chunk)
        before = 0
        for position, size in zip(within, shape, strict=False):
            before = before * size + position
        row = prod(shape[len(within) + 1 :])
        skipped = (before * shape[len(within)] + start) * row
        return map_tensor(chunk.path, data + skipped * dtype.itemsize, (stop - start, *shape[len(within) + 1 :]), dtype)

    def _locate(self, chunk: _Chunk) -> tuple[int, torch.dtype, tuple[int, ...]]:
        """Where the bytes of a chunk begin in its file, and what they are."""
        place = chunk.path, chunk.start
        if place not in self._opened:
            try:
                found = _read_archive(chunk)
                if found[2] != chunk.sizes:
                    raise ValueError(f"a part has shape {found[2]}, the index says {chunk.sizes}")
            except (OSError, ValueError, KeyError, EOFError, TypeError, struct.error, pickle.UnpicklingError,
                    zipfile.BadZipFile) as error:  # fmt: skip
                raise ConfigError(
                    f"model.path: {chunk.path} is damaged at byte {chunk.start} ({' '.join(str(error).split())});"
                    " copy the checkpoint again"
                ) from None
            self._opened[place] = found
        return self._opened[place]


def _places(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if not offsets:
        yield ()
        return
    for first in range(offsets[0], offsets[0] + sizes[0]):
        for rest in _places(offsets[1:], sizes[1:]):
            yield (first, *rest)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, for zipfile."""

    def __init__(self, file: Any, start: int, length: int):
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data: bytes = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


def _read_archive(chunk: _Chunk) -> tuple[int, torch.dtype, tuple[int, ...]]:
    with chunk.path.open("rb") as file:
        archive = zipfile.ZipFile(_Window(file, chunk.start, chunk.length))  # type: ignore[arg-type]
        members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("a part is compressed")

        def begin(info: zipfile.ZipInfo) -> int:
            # Checksums are not looked at: torch.save may be told to leave them out.
            file.seek(chunk.start + info.header_offset)
            header = file.read(30)
            name, extra = struct.unpack("<HH", header[26:30])
            return chunk.start + info.header_offset + 30 + int(name) + int(extra)

        file.seek(begin(members["data.pkl"]))
        dtype, offset, shape, strides = _TensorUnpickler(io.BytesIO(file.read(members["data.pkl"].file_size))).load()
        data = members["data/0"]
        contiguous = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if strides != contiguous or (offset + prod(shape)) * dtype.itemsize > data.file_size:
            raise ValueError(f"a part is not laid out row by row (shape {shape}, strides {strides})")
        return begin(data) + offset * dtype.itemsize, dtype, shape
