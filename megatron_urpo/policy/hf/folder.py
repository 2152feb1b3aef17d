"""A Hugging Face model folder as a mapping from tensor name to tensor, read lazily; and how one is written."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_urpo.config import ConfigError

_COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model",
)  # fmt: skip


class WeightFolder:
    """`folder[name]` reads one tensor from the safetensors files. Raises ConfigError for what is missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        self._files: dict[str, str]
        if index.is_file():
            self._files = self._read_index(index)
        elif single.is_file():
            with self._open(single.name) as file:
                self._files = dict.fromkeys(file.keys(), single.name)
        else:
            raise ConfigError(
                f"model.path: {folder} has neither model.safetensors nor its index; give a folder with weights,"
                " or set model.init to `random`"
            )

    def check_holds(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ConfigError where a tensor is missing, has another shape or cannot be read; reads headers only."""
        by_file: dict[str, list[str]] = {}
        for name in shapes:
            by_file.setdefault(self._file_of(name), []).append(name)
        for file_name, names in by_file.items():
            with self._open(file_name) as file:
                held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for name in names:
                if name not in held:
                    raise self._lacks(name)
                if held[name] != shapes[name]:
                    raise ConfigError(
                        f"model.path: {name!r} in {self.folder / file_name} has shape {held[name]}, config.json implies"
                        f" {shapes[name]}; give the config.json that belongs to the weights"
                    )

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            return {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"model.path: {path} is not an index of safetensors ({' '.join(repr(error).split())}); copy the model"
                " again"
            ) from None

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise self._lacks(name)
        return self._files[name]

    def _lacks(self, name: str) -> ConfigError:
        return ConfigError(
            f"model.path: {self.folder} holds no tensor {name!r}, which its config.json implies; give the whole model"
        )

    def _open(self, name: str) -> safe_open:
        try:
            return safe_open(self.folder / name, framework="pt")
        except (FileNotFoundError, SafetensorError) as error:
            raise ConfigError(
                f"model.path: {self.folder / name} is missing or not readable ({' '.join(str(error).split())});"
                " copy the model again"
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self._file_of(name)) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def write_folder(target: Path, source: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes `tensors` as a model folder that transformers loads; config and tokenizer are copied from `source`.

    The folder appears under its name only when it is whole.
    """
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copy2(source / name, aside / name)
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in tensors}, aside / "model.safetensors", {"format": "pt"}
    )
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
