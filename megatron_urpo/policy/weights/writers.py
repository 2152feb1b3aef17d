"""Megatron checkpoints written from a stream of whole rows, so that memory does not grow with the model."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import cut, local_shape, regions, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, weight_entries
from megatron_urpo.policy.weights.rows import Rows, Spec, row_bytes
from megatron_urpo.policy.weights.safetensors_io import SafetensorsWriter, write_all
from megatron_urpo.policy.weights.shards import file_name, local_name, stage_of
from megatron_urpo.policy.weights.torch_archive import around_tensor, plain_archive
from megatron_urpo.policy.weights.torch_pickle import CHECKPOINT, Call, Instance, Named, dumps

FILE_BYTES = 5 * 10**9
_METADATA = f"{CHECKPOINT}.metadata"


class MegatronWriter(ABC):
    """Rows of a weight come in order, and never across the border of gate and up."""

    @abstractmethod
    def write(self, entry: WeightEntry, row: int, rows: Rows) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Once it returns the checkpoint is whole and on disk."""

    @abstractmethod
    def abandon(self) -> None:
        """Leaves files as they are."""


class TorchDistWriter(MegatronWriter):
    """The format of torch.distributed.checkpoint, one part after the other.

    torch's own FileSystemWriter keeps every tensor of a file until the file is written, and one file a tensor would be
    18,000 files for a model with experts.
    """

    def __init__(self, folder: Path, shape: ModelShape, dtypes: Mapping[str, str]):
        folder.mkdir()
        self._folder, self._shapes, self._dtypes = folder, hf_shapes(shape), dtypes
        self._tensors: dict[str, Instance] = {}
        self._chunks: dict[str, list[Instance]] = {}
        self._places: dict[Instance, Instance] = {}
        self._file: IO[bytes] | None = None
        self._count = 0
        self._states = [name for entry in weight_entries(shape, "te") if (name := _extra_state(entry))]

    def write(self, entry: WeightEntry, row: int, rows: Rows) -> None:
        whole = whole_shape(entry, self._shapes)
        offsets = (*entry.index, row, *(0 for _ in whole[1:]))
        sizes = (*(1 for _ in entry.index), *rows.shape)
        dtype = self._dtypes[entry.hf[0]]
        if entry.key not in self._tensors:
            self._chunks[entry.key] = []
            self._tensors[entry.key] = _tensor_info(dtype, (*entry.stack, *whole), self._chunks[entry.key])
        chunk = {"offsets": _size(offsets), "sizes": _size(sizes)}
        self._chunks[entry.key].append(Instance(Named(_METADATA, "ChunkStorageMetadata"), chunk))
        file = self._open()
        before, after = around_tensor(dtype, sizes, file.tell())
        self._record(_index(entry.key, offsets), before, row_bytes(rows), after)

    def close(self) -> None:
        empty = plain_archive(None)  # what megatron-core writes for a layer without a state of its own
        for name in self._states:
            self._tensors[name] = Instance(Named(_METADATA, "BytesStorageMetadata"))
            self._record(_index(name, None), empty)
        self._close_file()
        (self._folder / "common.pt").write_bytes(plain_archive({}))
        backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        (self._folder / "metadata.json").write_text(
            json.dumps({**backends, "common_backend": "torch", "common_backend_version": 1})
        )
        nothing: dict[str, object] = {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}
        index = {
            "state_dict_metadata": self._tensors,
            "planner_data": None,
            "storage_data": self._places,
            "storage_meta": Instance(Named(_METADATA, "StorageMeta"), nothing),
            "version": "1.0.0",
        }
        (self._folder / ".metadata").write_bytes(dumps(Instance(Named(_METADATA, "Metadata"), index)))

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> IO[bytes]:
        if self._file is not None and self._file.tell() > FILE_BYTES:
            self._close_file()
        if self._file is None:
            self._file = (self._folder / self._name).open("wb", buffering=0)
        return self._file

    def _record(self, index: Instance, *parts: bytes | memoryview) -> None:
        file = self._open()
        start = file.tell()
        for part in parts:
            write_all(file, part)
        place = {"relative_path": self._name, "offset": start, "length": file.tell() - start}
        self._places[index] = Instance(Named(f"{CHECKPOINT}.filesystem", "_StorageInfo"), place)

    @property
    def _name(self) -> str:
        return f"__0_{self._count}.distcp"

    def _close_file(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._count += 1


def _size(numbers: tuple[int, ...]) -> Call:
    return Call(Named("torch", "Size"), (numbers,))


def _index(key: str, offsets: tuple[int, ...] | None) -> Instance:
    state = {"fqn": key, "offset": _size(offsets) if offsets is not None else None, "index": None}
    return Instance(Named(_METADATA, "MetadataIndex"), state)


def _tensor_info(dtype: str, shape: tuple[int, ...], chunks: list[Instance]) -> Instance:
    layout = Call(Named("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Call(Named(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
    properties = (Named("torch", dtype), layout, False, contiguous, False)
    state = {
        "properties": Instance(Named(_METADATA, "TensorProperties"), properties),
        "size": _size(shape),
        "chunks": chunks,
    }
    return Instance(Named(_METADATA, "TensorStorageMetadata"), state)


def _extra_state(entry: WeightEntry) -> str | None:
    """megatron-core's linears have a state beside their weights; its own loader looks for the empty one, too."""
    if entry.kind in ("replicated", "vocab") or not entry.key.endswith(".weight"):
        return None
    at, of = (".".join(map(str, numbers)) for numbers in (entry.index, entry.stack))
    return f"{entry.key.removesuffix('weight')}_extra_state/shard_{at}_{of}"


class ShardWriter(MegatronWriter):
    """One safetensors file a rank; see shards.py."""

    def __init__(
        self, folder: Path, shape: ModelShape, dtypes: Mapping[str, str], tensor: int, pipeline: int, spec: str
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

    def write(self, entry: WeightEntry, row: int, rows: Rows) -> None:
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
