"""Rows of weights as they lie in files: NumPy arrays of unsigned integers, and the name of their dtype beside them.

Moving bytes takes no arithmetic, NumPy has no bfloat16, and importing torch takes longer than converting a small model:
it is imported where values count.
"""

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.unsignedinteger[Any]]
Spec = tuple[str, tuple[int, ...]]
"""Name of the dtype, and shape."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * ITEM_BYTES[dtype]


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """What the array of such rows has."""
    return np.dtype(f"<u{ITEM_BYTES[dtype]}")


def row_bytes(rows: Rows) -> memoryview:
    """Row by row; a copy only where they do not lie so."""
    data: memoryview = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    return data


def to_tensor(rows: Rows, dtype: str) -> "torch.Tensor":
    """The same memory as a tensor."""
    import torch

    tensor: torch.Tensor = torch.from_numpy(rows).view(getattr(torch, dtype))
    return tensor


def from_tensor(tensor: "torch.Tensor") -> Rows:
    """The inverse; the same memory where it is the CPU's."""
    import torch

    raw = getattr(torch, f"uint{8 * tensor.element_size()}")
    rows: Rows = tensor.detach().cpu().contiguous().view(raw).numpy()
    return rows


def cast(rows: Rows, dtype: str, wanted: str) -> Rows:
    """Rounds to `wanted`; the bits stay where it is the same."""
    if dtype == wanted:
        return rows
    import torch

    return from_tensor(to_tensor(rows, dtype).to(getattr(torch, wanted)))


def dtype_name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
