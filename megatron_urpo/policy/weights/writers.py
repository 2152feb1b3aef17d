"""Megatron checkpoints written from a stream of whole rows, so that memory does not grow with the model."""

import contextlib
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import cut, local_shape, regions, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, weight_entries
from megatron_urpo.policy.weights.safetensors_io import SafetensorsWriter, Spec, write_all
from megatron_urpo.policy.weights.shards import file_name, local_name, stage_of

FILE_BYTES = 5 * 10**9


class MegatronWriter(ABC):
    """Rows of a weight come in order, and never across the border of gate and up."""

    @abstractmethod
    def write(self, entry: WeightEntry, row: int, rows: Tensor) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Once it returns the checkpoint is whole and on disk."""

    @abstractmethod
    def abandon(self) -> None:
        """Leaves files as they are."""


class TorchDistWriter(MegatronWriter):
    """The format of torch.distributed.checkpoint, one part after the other.

    torch's own FileSystemWriter keeps every tensor of a file until the file is written, and one file a tensor would be
    18,000 files for a model with experts. The records, the index and their classes are torch's.
    """

    def __init__(self, folder: Path, shape: ModelShape, dtypes: Mapping[str, torch.dtype]):
        folder.mkdir()
        self._folder, self._shapes, self._dtypes = folder, hf_shapes(shape), dtypes
        self._tensors: dict[str, Any] = {}
        self._places: dict[metadata.MetadataIndex, Any] = {}
        self._file: IO[bytes] | None = None
        self._count = 0
        self._states = [name for entry in weight_entries(shape, "te") if (name := _extra_state(entry))]

    def write(self, entry: WeightEntry, row: int, rows: Tensor) -> None:
        whole = whole_shape(entry, self._shapes)
        rest = (0,) * (len(whole) - 1)
        chunk = metadata.ChunkStorageMetadata(
            torch.Size((*entry.index, row, *rest)), torch.Size((*(1 for _ in entry.index), *rows.shape))
        )
        if entry.key not in self._tensors:
            self._tensors[entry.key] = metadata.TensorStorageMetadata(
                metadata.TensorProperties(rows.dtype), torch.Size((*entry.stack, *whole)), []
            )
        self._tensors[entry.key].chunks.append(chunk)
        stacked = rows.contiguous().reshape(chunk.sizes)
        if stacked.untyped_storage().nbytes() != stacked.nbytes:
            stacked = stacked.clone()  # torch.save writes whole storages
        with _without_checksums():
            self._record(metadata.MetadataIndex(entry.key, chunk.offsets), stacked)

    def close(self) -> None:
        for name in self._states:
            self._tensors[name] = metadata.BytesStorageMetadata()
            self._record(metadata.MetadataIndex(name), None)
        self._close_file()
        torch.save({}, self._folder / "common.pt")
        backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        (self._folder / "metadata.json").write_text(
            json.dumps({**backends, "common_backend": "torch", "common_backend_version": 1})
        )
        index = metadata.Metadata(self._tensors, storage_data=self._places, version="1.0.0")
        index.storage_meta = metadata.StorageMeta()
        with (self._folder / ".metadata").open("wb") as file:
            pickle.dump(index, file)

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def _record(self, index: metadata.MetadataIndex, value: Tensor | None) -> None:
        if self._file is not None and self._file.tell() > FILE_BYTES:
            self._close_file()
        if self._file is None:
            self._file = (self._folder / self._name).open("wb", buffering=0)
        start = self._file.tell()
        if value is None:  # what megatron-core writes for a layer without a state of its own
            empty = BytesIO()
            torch.save([None], empty)  # a list of what each rank has of it
            self._file.write(empty.getbuffer())
        else:
            _save(value, self._file)
        self._places[index] = filesystem._StorageInfo(self._name, start, self._file.tell() - start)

    @property
    def _name(self) -> str:
        return f"__0_{self._count}.distcp"

    def _close_file(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._count += 1


def _save(value: Tensor, file: IO[bytes]) -> None:
    """torch.save, with a full disk as the OSError that it is; torch makes a RuntimeError of it."""
    sink = _Whole(file)
    try:
        torch.save(value, sink)  # type: ignore[arg-type]
    except RuntimeError:
        if sink.error is not None:
            raise sink.error from None
        raise


class _Whole:
    """A file for torch.save, which takes it for granted that a write writes everything; a filling disk takes a part."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            write_all(self._file, data)
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""


def _extra_state(entry: WeightEntry) -> str | None:
    """megatron-core's linears have a state beside their weights; its own loader looks for the empty one, too."""
    if entry.kind in ("replicated", "vocab") or not entry.key.endswith(".weight"):
        return None
    at, of = (".".join(map(str, numbers)) for numbers in (entry.index, entry.stack))
    return f"{entry.key.removesuffix('weight')}_extra_state/shard_{at}_{of}"


@contextlib.contextmanager
def _without_checksums() -> Iterator[None]:
    """The zip's CRC-32 costs five times what writing does, and no reader of the format looks at it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class ShardWriter(MegatronWriter):
    """One safetensors file a rank; see shards.py."""

    def __init__(
        self, folder: Path, shape: ModelShape, dtypes: Mapping[str, torch.dtype], tensor: int, pipeline: int, spec: str
    ):
        folder.mkdir()
        self._shape, self._shapes, self._tensor, self._pipeline = shape, hf_shapes(shape), tensor, pipeline
        self._names = {
            te.hf: local_name(entry, shape, pipeline)
            for te, entry in zip(weight_entries(shape, "te"), weight_entries(shape, spec), strict=True)
        }
        specs: dict[int, dict[str, Spec]] = {stage: {} for stage in range(pipeline)}
        for entry in weight_entries(shape, spec):
            local = local_shape(entry, whole_shape(entry, self._shapes), tensor)
            for stage, name in self._places(entry):
                specs[stage][name] = dtypes[entry.hf[0]], local
        self._files: dict[tuple[int, int], SafetensorsWriter] = {}
        try:
            for stage in range(pipeline):
                for rank in range(tensor):
                    self._files[rank, stage] = SafetensorsWriter(folder / file_name(rank, stage), specs[stage])
        except BaseException:
            self.abandon()
            raise

    def write(self, entry: WeightEntry, row: int, rows: Tensor) -> None:
        whole = whole_shape(entry, self._shapes)
        for rank in range(self._tensor):
            for region in regions(entry, whole, rank, self._tensor):
                found = cut(region, row, rows)
                if found is not None:
                    for stage, name in self._places(entry):
                        self._files[rank, stage].write(name, *found)

    def _places(self, entry: WeightEntry) -> list[tuple[int, str]]:
        """(stage, name) of every copy."""
        places = [(stage_of(entry, self._shape, self._pipeline), self._names[entry.hf])]
        tied = self._shape.tied_embeddings and entry.megatron.startswith("embedding.") and self._pipeline > 1
        return places + ([(self._pipeline - 1, "output_layer.weight")] if tied else [])

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def abandon(self) -> None:
        for file in self._files.values():
            file.abandon()
