"""Windows of a file in memory: read by the kernel when touched, gone from this process with the tensor.

One mapping of a whole file would count all its pages as this process's memory; a window counts as long as it is used.
"""

import mmap
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron_urpo.config import ConfigError


def map_tensor(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor at `offset` of `path`; writes do not reach the file. Raises ConfigError for a short file."""
    count = prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    num_bytes = count * dtype.itemsize
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        try:
            window = mmap.mmap(file.fileno(), offset - start + num_bytes, offset=start, access=mmap.ACCESS_COPY)
        except ValueError:
            raise ConfigError(f"{path} ends before byte {offset + num_bytes}; copy it again") from None
    window.madvise(mmap.MADV_SEQUENTIAL)
    return torch.frombuffer(window, dtype=dtype, count=count, offset=offset - start).view(shape)
