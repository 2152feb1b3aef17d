"""`manifest.json`: what a conversion wrote, tensor by tensor under Hugging Face names, so that nothing is lost unseen.

The hash of a tensor is that of its bytes, row by row, in the dtype that was written. It is the same on every side of a
conversion, whatever the layout of the files.
"""

import hashlib
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_urpo import __version__
from megatron_urpo.config import ConfigError
from megatron_urpo.policy.weights.rows import Rows, row_bytes

NAME = "manifest.json"
FORMAT = 1
_PENDING = 4


@dataclass(frozen=True)
class TensorRecord:
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class Hashes:
    """sha256 of tensors that come in parts. A second thread computes them: hashing takes as long as writing does."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def add(self, name: str, rows: Rows) -> None:
        """Rows in order. They must not change until the hash is asked for, or four more have been added."""
        state = self._states.setdefault(name, hashlib.sha256())
        self._pending.append(self._thread.submit(state.update, row_bytes(rows)))
        while len(self._pending) > _PENDING:
            self._pending.popleft().result()

    def digest(self, name: str) -> str:
        while self._pending:
            self._pending.popleft().result()
        digest: str = self._states[name].hexdigest()
        return digest

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def write_manifest(
    folder: Path, source: Path, hashes: Hashes, dtypes: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> None:
    records = {name: asdict(TensorRecord(shape, dtypes[name], hashes.digest(name))) for name, shape in shapes.items()}
    content = {"format": FORMAT, "tool": f"megatron-urpo {__version__}", "source": str(source), "tensors": records}
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, TensorRecord] | None:
    """None where there is none. Raises ConfigError where it cannot be read."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']!r}, this version reads {FORMAT}")
        return {
            name: TensorRecord(tuple(record["shape"]), record["dtype"], record["sha256"])
            for name, record in content["tensors"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it to go without") from None
