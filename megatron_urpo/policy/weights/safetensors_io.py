"""safetensors files by ranges of rows: the safetensors library checks headers, bytes are mapped and written here.

The library gives and takes whole tensors of whole files; a 5 GB file of a big model must pass in small parts.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.weights.mapped import map_rows
from megatron_urpo.policy.weights.output import OutputFile
from megatron_urpo.policy.weights.rows import Rows, Spec, num_bytes, row_bytes

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile:
    """The header of one file, and rows of its tensors. Raises ConfigError for a file that is not whole."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="np"):  # checks that the header is sound and the file as long as it says
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(
                f"model.path: {path} is missing or not readable ({' '.join(str(error).split())}); copy the model again"
            ) from None
        header.pop("__metadata__", None)
        self._header = header
        self._start = 8 + length

    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of each tensor."""
        return {name: (self._dtype(name), tuple(entry["shape"])) for name, entry in self._header.items()}

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """A mapped view; see `map_rows`."""
        dtype, shape = self._dtype(name), tuple(self._header[name]["shape"])
        skipped = start * num_bytes(dtype, shape[1:])
        offset = self._start + self._header[name]["data_offsets"][0] + skipped
        return map_rows(self.path, offset, (stop - start, *shape[1:]), dtype)

    def _dtype(self, name: str) -> str:
        code = self._header[name]["dtype"]
        if code not in DTYPES:
            raise ConfigError(
                f"model.path: {name!r} in {self.path} has dtype {code}; known are {', '.join(DTYPES)}; give a model"
                " that is not quantized"
            )
        return DTYPES[code]


class SafetensorsWriter:
    """A file whose tensors are known beforehand and come in parts, in any order; what does not come stays zero."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]):
        offset, header = 0, {}
        self._places: dict[str, tuple[int, int]] = {}
        for name, (dtype, shape) in specs.items():
            size = num_bytes(dtype, shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
            self._places[name] = (offset, num_bytes(dtype, shape[1:]))
            offset += size
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = OutputFile(path)
        try:
            self._file.write(0, len(text).to_bytes(8, "little") + text)
            self._file.truncate(self._start + offset)
        except OSError:
            self._file.abandon()
            raise

    def write(self, name: str, row: int, rows: Rows) -> None:
        """`rows` in the file's dtype, at row `row` of `name`."""
        offset, stride = self._places[name]
        self._file.write(self._start + offset + row * stride, row_bytes(rows))

    def close(self) -> None:
        """Once it returns the file is on disk."""
        self._file.close()

    def abandon(self) -> None:
        self._file.abandon()
