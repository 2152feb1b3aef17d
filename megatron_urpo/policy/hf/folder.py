"""A Hugging Face model folder by tensor name, read lazily; and how one is written."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.weights.aside import written_aside
from megatron_urpo.policy.weights.rows import Rows, Spec, from_tensor, num_bytes
from megatron_urpo.policy.weights.safetensors_io import SafetensorsFile, SafetensorsWriter

if TYPE_CHECKING:
    from torch import Tensor

COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model",
)  # fmt: skip
SHARD_BYTES = 5 * 10**9
"""Of one file; transformers' own default is of this size."""


class WeightFolder:
    """The safetensors files of a folder by tensor name. Raises ConfigError for what is missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        self._files: dict[str, str]
        self._opened: dict[str, tuple[SafetensorsFile, dict[str, Spec]]] = {}
        if index.is_file():
            self._files = self._read_index(index)
        elif single.is_file():
            self._files = dict.fromkeys(self._open(single.name)[1], single.name)
        else:
            raise ConfigError(
                f"model.path: {folder} has neither model.safetensors nor its index; give a folder with weights,"
                " or set model.init to `random`"
            )

    def names(self) -> set[str]:
        return set(self._files)

    def check_holds(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ConfigError where a tensor is missing, has another shape or cannot be read; reads headers only."""
        by_file: dict[str, list[str]] = {}
        for name in shapes:
            by_file.setdefault(self._file_of(name), []).append(name)
        for file_name, names in by_file.items():
            held = self._open(file_name)[1]
            for name in names:
                if name not in held:
                    raise self._lacks(name)
                if held[name][1] != shapes[name]:
                    raise ConfigError(
                        f"model.path: {name!r} in {self.folder / file_name} has shape {held[name][1]}, config.json"
                        f" implies {shapes[name]}; give the config.json that belongs to the weights"
                    )

    def dtype(self, name: str) -> str:
        return self._spec(name)[0]

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """A view of the file; copy what is kept."""
        self._spec(name)
        return self._open(self._file_of(name))[0].rows(name, start, stop)

    def _spec(self, name: str) -> Spec:
        specs = self._open(self._file_of(name))[1]
        if name not in specs:
            raise self._lacks(name)
        return specs[name]

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            files = {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"model.path: {path} is not an index of safetensors ({' '.join(repr(error).split())}); copy the model"
                " again"
            ) from None
        outside = next((file for file in files.values() if Path(file).name != file), None)
        if outside is not None:
            raise ConfigError(f"model.path: {path} points to {outside!r}, outside of the folder; copy the model again")
        return files

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise self._lacks(name)
        return self._files[name]

    def _lacks(self, name: str) -> ConfigError:
        return ConfigError(
            f"model.path: {self.folder} holds no tensor {name!r}, which its config.json implies; give the whole model"
        )

    def _open(self, name: str) -> tuple[SafetensorsFile, dict[str, Spec]]:
        if name not in self._opened:
            file = SafetensorsFile(self.folder / name)
            self._opened[name] = file, file.specs()
        return self._opened[name]


class FolderWriter:
    """The safetensors of a folder, in files of `shard_bytes` at most unless one tensor is larger; with an index."""

    def __init__(self, folder: Path, specs: Mapping[str, Spec], shard_bytes: int = SHARD_BYTES):
        groups: list[dict[str, Spec]] = [{}]
        size = total = 0
        for name, (dtype, shape) in specs.items():
            more = num_bytes(dtype, shape)
            if groups[-1] and size + more > shard_bytes:
                groups.append({})
                size = 0
            groups[-1][name] = dtype, shape
            size += more
            total += more
        self._groups = groups
        self._files = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        if len(groups) == 1:
            self._files = ["model.safetensors"]
        else:
            places = {name: file for file, group in zip(self._files, groups, strict=True) for name in group}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        self._folder = folder
        self._position = -1
        self._writer: SafetensorsWriter | None = None

    def write(self, name: str, row: int, rows: Rows) -> None:
        """Names in the order of `specs`; rows of one in order."""
        if self._position < 0 or name not in self._groups[self._position]:
            self.close()
            self._position += 1
            path = self._folder / self._files[self._position]
            self._writer = SafetensorsWriter(path, self._groups[self._position])
        assert self._writer is not None
        self._writer.write(name, row, rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, chat template and configs; config.json last, since without it nothing loads a folder."""
    for name in reversed(COPIED):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_folder(
    target: Path, source: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, "Tensor"]]
) -> None:
    """Writes `tensors`, as `specs` announces them, as a model folder that transformers loads.

    Config and tokenizer are copied from `source`. The folder appears under its name only when it is whole, in the
    place of what was there before.
    """
    with written_aside(target, replace=True) as aside:
        writer = FolderWriter(aside, specs)
        try:
            for name, tensor in tensors:
                writer.write(name, 0, from_tensor(tensor))
            writer.close()
        finally:
            writer.abandon()
        copy_companions(source, aside)
