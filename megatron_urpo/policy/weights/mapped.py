"""Windows of a file in memory: read by the kernel when touched, gone from this process with the array.

One mapping of a whole file would count all its pages as this process's memory; a window counts as long as it is used.
"""

import mmap
from math import prod
from pathlib import Path

import numpy as np

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.weights.rows import Rows, num_bytes, raw_dtype


def map_rows(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> Rows:
    """What lies at `offset` of `path`; writes do not reach the file. Raises ConfigError for a short file."""
    size = num_bytes(dtype, shape)
    if size == 0:
        return np.empty(shape, raw_dtype(dtype))
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        try:
            window = mmap.mmap(file.fileno(), offset - start + size, offset=start, access=mmap.ACCESS_COPY)
        except ValueError:
            raise ConfigError(f"{path} ends before byte {offset + size}; copy it again") from None
    window.madvise(mmap.MADV_SEQUENTIAL)
    return np.frombuffer(window, raw_dtype(dtype), prod(shape), offset - start).reshape(shape)
