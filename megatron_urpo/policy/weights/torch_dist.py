"""Reading the model's weights out of a checkpoint in megatron-core's `torch_dist` format, without torch's own loader.

Its index, `.metadata`, is a pickle by format (torch_pickle.py); each part is a small zip archive as torch.save writes
it (torch_archive.py), whose bytes are mapped where they lie. `common.pt` is not read.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import Region, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry
from megatron_urpo.policy.weights.mapped import map_rows
from megatron_urpo.policy.weights.rows import Rows, Spec, num_bytes
from megatron_urpo.policy.weights.source import Part, RegionWeights
from megatron_urpo.policy.weights.torch_archive import DAMAGED, Place, find_tensor
from megatron_urpo.policy.weights.torch_pickle import Index, TensorInfo, read_metadata

METADATA = ".metadata"


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
            self._metadata = read_metadata(path)
            self._specs: dict[str, Spec] = {
                key: (value.properties.dtype, value.size)
                for key, value in self._metadata.state_dict_metadata.items()
                if isinstance(value, TensorInfo)
            }
            self._ends = self._read_ends(folder)
            self._chunks = self._read_chunks(folder)
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model.path: {path} is not the index of a torch_dist checkpoint ({' '.join(str(error).split())});"
                " take another checkpoint"
            ) from None
        self._opened: dict[tuple[Path, int], Place] = {}

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
            if key not in self._specs:
                continue
            for chunk in self._metadata.state_dict_metadata[key].chunks:
                info = self._metadata.storage_data[Index(key, chunk.offsets)]
                offsets, sizes = chunk.offsets, chunk.sizes
                found = _Chunk(offsets, sizes, folder / info.relative_path, info.offset, info.length)
                for index in _places(offsets[:depth], sizes[:depth]):
                    chunks.setdefault(key, {}).setdefault(index, []).append(found)
        return chunks

    def names(self) -> set[str]:
        known = {entry.key for entry in self.entries.values()}
        model = (key for key in self._specs if not key.startswith("optimizer."))
        return {name for name, entry in self.entries.items() if entry.index in self._chunks.get(entry.key, {})} | {
            key for key in model if key not in known
        }

    def dtype(self, name: str) -> str:
        return self._stored(self.entries[name])[0]

    def _stored(self, entry: WeightEntry) -> Spec:
        if entry.index not in self._chunks.get(entry.key, {}):
            raise ConfigError(
                f"model.path: {self.place} holds no {entry.key!r} at {entry.index}, which its config.json implies; give"
                " the checkpoint of this model"
            )
        return self._specs[entry.key]

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

    def _read(self, chunk: _Chunk, within: tuple[int, ...], start: int, stop: int) -> Rows:
        data, (dtype, shape) = self._locate(chunk)
        before = 0
        for position, size in zip(within, shape, strict=False):
            before = before * size + position
        depth = len(within)
        skipped = (before * shape[depth] + start) * num_bytes(dtype, shape[depth + 1 :])
        return map_rows(chunk.path, data + skipped, (stop - start, *shape[depth + 1 :]), dtype)

    def _locate(self, chunk: _Chunk) -> Place:
        """Where the bytes of a chunk begin in its file, and what they are."""
        place = chunk.path, chunk.start
        if place not in self._opened:
            try:
                with chunk.path.open("rb") as file:
                    found = find_tensor(file, chunk.start, chunk.length)
                if found[1][1] != chunk.sizes:
                    raise ValueError(f"a part has shape {found[1][1]}, the index says {chunk.sizes}")
            except DAMAGED as error:
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
