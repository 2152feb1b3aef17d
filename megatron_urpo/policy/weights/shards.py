"""One safetensors file a rank, with the names and shapes that a Megatron module of that rank has.

`tp_0_pp_1.safetensors` is tensor-parallel rank 0 of pipeline stage 1; layers are counted within the stage, as
megatron-core does. A tied embedding of several stages is in the last one too, as its `output_layer.weight`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.regions import local_shape, regions, whole_shape
from megatron_urpo.policy.hf.table import WeightEntry, weight_entries
from megatron_urpo.policy.weights.rows import Rows
from megatron_urpo.policy.weights.safetensors_io import SafetensorsFile
from megatron_urpo.policy.weights.source import Part, RegionWeights


def file_name(tensor_rank: int, stage: int) -> str:
    return f"tp_{tensor_rank}_pp_{stage}.safetensors"


def is_shards(folder: Path) -> bool:
    return (folder / file_name(0, 0)).is_file()


def stage_of(entry: WeightEntry, shape: ModelShape, pipeline: int) -> int:
    """The pipeline stage that holds a weight: layers in equal parts, embedding first, head last."""
    if entry.megatron.startswith("decoder.layers."):
        return entry.index[0] // (shape.num_layers // pipeline)
    return 0 if entry.megatron.startswith("embedding.") else pipeline - 1


def local_name(entry: WeightEntry, shape: ModelShape, pipeline: int) -> str:
    """Within its stage."""
    if not entry.megatron.startswith("decoder.layers."):
        return entry.megatron
    _, _, layer, rest = entry.megatron.split(".", 3)
    return f"decoder.layers.{int(layer) % (shape.num_layers // pipeline)}.{rest}"


class ShardWeights(RegionWeights):
    def __init__(self, folder: Path, shape: ModelShape):
        super().__init__(folder, shape)
        found = [re.fullmatch(r"tp_(\d+)_pp_(\d+)\.safetensors", path.name) for path in folder.iterdir()]
        ranks = {(int(match[1]), int(match[2])) for match in found if match}
        self.tensor, self.pipeline = (max(rank[axis] for rank in ranks) + 1 for axis in (0, 1))
        missing = {(t, p) for t in range(self.tensor) for p in range(self.pipeline)} - ranks
        if missing:
            raise ConfigError(f"model.path: {folder / file_name(*min(missing))} is missing; copy the checkpoint again")
        if shape.num_layers % self.pipeline:
            raise ConfigError(
                f"model.path: {folder} has {self.pipeline} stages, which do not divide the model's layers"
            )
        self._files = {rank: SafetensorsFile(folder / file_name(*rank)) for rank in sorted(ranks)}
        self._specs = {rank: file.specs() for rank, file in self._files.items()}
        self._names = self._find_names(shape)

    def _find_names(self, shape: ModelShape) -> dict[WeightEntry, tuple[int, str]]:
        """Stage and local name of each weight, under whichever spec's names it is there."""
        names = {}
        for te, torch_entry in zip(weight_entries(shape, "te"), weight_entries(shape, "torch"), strict=True):
            stage = stage_of(te, shape, self.pipeline)
            for entry in (te, torch_entry):
                name = local_name(entry, shape, self.pipeline)
                if name in self._specs[0, stage]:
                    names[te] = stage, name
        return names

    def names(self) -> set[str]:
        known = {name for entry in self._names for name in entry.hf}
        used = {name for _, name in self._names.values()} | {"output_layer.weight"}
        return known | {name for specs in self._specs.values() for name in specs if name not in used}

    def check(self) -> None:
        for entry in dict.fromkeys(self.entries.values()):
            stage, name = self._place(entry)
            want = local_shape(entry, whole_shape(entry, self.shapes), self.tensor)
            for rank in range(self.tensor):
                held = self._specs[rank, stage].get(name, (None, None))[1]
                if held != want:
                    raise ConfigError(
                        f"model.path: {name!r} in {self.place / file_name(rank, stage)} has shape {held}, config.json"
                        f" implies {want}; give the config.json that belongs to the weights"
                    )

    def dtype(self, name: str) -> str:
        stage, local = self._place(self.entries[name])
        return self._specs[0, stage][local][0]

    def parts(self, entry: WeightEntry) -> Iterator[Part]:
        stage, name = self._place(entry)
        whole = whole_shape(entry, self.shapes)
        for rank in range(1 if entry.kind == "replicated" else self.tensor):
            file = self._files[rank, stage]

            def read(start: int, stop: int, file: SafetensorsFile = file) -> Rows:
                return file.rows(name, start, stop)

            for region in regions(entry, whole, rank, self.tensor):
                yield region, read

    def _place(self, entry: WeightEntry) -> tuple[int, str]:
        # `entries` of other specs are the same weights under another name.
        entry = self.entries[entry.hf[0]]
        if entry not in self._names:
            raise ConfigError(
                f"model.path: {self.place} holds no {entry.megatron!r}, which its config.json implies; give the"
                " checkpoint of this model"
            )
        return self._names[entry]
