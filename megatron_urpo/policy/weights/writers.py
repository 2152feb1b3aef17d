"""Megatron checkpoints written from a stream of whole rows, so that memory does not grow with the model."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import cut, local_shape, regions, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry, hf_shapes, weight_entries
from megatron_urpo.policy.weights.output import OutputFile
from megatron_urpo.policy.weights.rows import Rows, Spec, num_bytes, row_bytes
from megatron_urpo.policy.weights.safetensors_io import SafetensorsWriter
from megatron_urpo.policy.weights.shards import file_name, local_name, stage_of
from megatron_urpo.policy.weights.torch_archive import around_tensor, plain_archive
from megatron_urpo.policy.weights.torch_pickle import CHECKPOINT, Call, Instance, Named, dumps

FILE_BYTES = 5 * 10**9
PART_BYTES = 64 * 2**20
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


@dataclass(frozen=True)
class _OpenPart:
    """A record of rows up to `stop` that began at byte `begin` of its file, and the bytes that will end it."""

    index: Instance
    stop: int
    begin: int
    tail: bytes


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
        self._file: OutputFile | None = None
        self._count = self._size = 0
        self._open_part: _OpenPart | None = None
        self._states = [name for entry in weight_entries(shape, "te") if (name := _extra_state(entry))]

    def write(self, entry: WeightEntry, row: int, rows: Rows) -> None:
        while len(rows):
            part = self._open_part or self._begin_part(entry, row)
            self._append(row_bytes(rows[: part.stop - row]))
            rows, row = rows[part.stop - row :], min(part.stop, row + len(rows))
            self._open_part = part if row < part.stop else None
            if row == part.stop:
                self._append(part.tail)
                self._place(part.index, part.begin)

    def _begin_part(self, entry: WeightEntry, row: int) -> "_OpenPart":
        """Up to PART_BYTES of rows from `row` on."""
        whole, dtype = whole_shape(entry, self._shapes), self._dtypes[entry.hf[0]]
        stop = min(whole[0], row + max(1, PART_BYTES // num_bytes(dtype, whole[1:])))
        offsets = (*entry.index, row, *(0 for _ in whole[1:]))
        sizes = (*(1 for _ in entry.index), stop - row, *whole[1:])
        if entry.key not in self._tensors:
            self._chunks[entry.key] = []
            self._tensors[entry.key] = _tensor_info(dtype, (*entry.stack, *whole), self._chunks[entry.key])
        chunk = {"offsets": _size(offsets), "sizes": _size(sizes)}
        self._chunks[entry.key].append(Instance(Named(_METADATA, "ChunkStorageMetadata"), chunk))
        begin = self._begin()
        head, tail = around_tensor(dtype, sizes, begin)
        self._append(head)
        return _OpenPart(_index(entry.key, offsets), stop, begin, tail)

    def close(self) -> None:
        empty = plain_archive([None])  # what each rank has of a state that there is not, as megatron-core writes it
        for name in self._states:
            self._tensors[name] = Instance(Named(_METADATA, "BytesStorageMetadata"))
            begin = self._begin()
            self._append(empty)
            self._place(_index(name, None), begin)
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
            self._file.abandon()

    def _begin(self) -> int:
        """Where the next record begins; in a new file when the last is full."""
        if self._file is not None and self._size > FILE_BYTES:
            self._close_file()
        if self._file is None:
            self._file, self._size = OutputFile(self._folder / self._name), 0
        return self._size

    def _append(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(self._size, data)
        self._size += len(data)

    def _place(self, index: Instance, begin: int) -> None:
        place = {"relative_path": self._name, "offset": begin, "length": self._size - begin}
        self._places[index] = Instance(Named(f"{CHECKPOINT}.filesystem", "_StorageInfo"), place)

    @property
    def _name(self) -> str:
        return f"__0_{self._count}.distcp"

    def _close_file(self) -> None:
        if self._file is not None:
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
