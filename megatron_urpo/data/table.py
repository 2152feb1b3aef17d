"""All prompts of a run as one sequence that decodes a prompt when it is asked for.

A run holds ids, tasks and sources as columns; everything else stays in Arrow's memory or in the files of a packed
store, so millions of rows are no Python objects.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from megatron_urpo.data.manifest import Manifest
from megatron_urpo.data.rows import parse_row, to_row
from megatron_urpo.data.store_schema import ROW_SCHEMA
from megatron_urpo.types import TASKS, Prompt


class Rows(Protocol):
    """Rows of one store by number; `column` is a chunked array."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> Any: ...

    def row(self, index: int) -> dict[str, Any]: ...

    def place(self, index: int) -> str:
        """Where a row stands, for messages."""

    def has_code_tests(self) -> bool:
        """Whether any row has the tests of a program."""


class MemoryRows:
    """Rows as an Arrow table; `file` and `numbers` (line or row of each) say where they came from."""

    def __init__(self, table: Any, file: str = "", numbers: Sequence[int] = ()) -> None:
        self._table, self._file, self._numbers = table, file, numbers

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> "MemoryRows":
        return cls(pyarrow.Table.from_pylist([to_row(prompt) for prompt in prompts], schema=ROW_SCHEMA))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> Any:
        return self._table[name]

    def row(self, index: int) -> dict[str, Any]:
        (row,) = self._table.slice(index, 1).to_pylist()
        return dict(row)

    def place(self, index: int) -> str:
        return f"{self._file}:{self._numbers[index]}" if self._numbers else f"row {index + 1}"

    def has_code_tests(self) -> bool:
        return bool(self._table["tests"].null_count < len(self))


class PromptTable(Sequence[Prompt]):
    """The prompts of several stores, one after the other.

    `manifests`: folder and manifest of those that were packed. `weights`: of sources within their task, as configured
    when they were packed; empty where a task's sources mix by their sizes.
    """

    def __init__(self, parts: Sequence[Rows], manifests: Sequence[tuple[Path, Manifest]] = ()) -> None:
        self._parts = tuple(parts)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.manifests = tuple(manifests)

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> "PromptTable":
        return prompts if isinstance(prompts, cls) else cls([MemoryRows.of(prompts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(index)
        part, inside = self._find(index)
        return parse_row(self._parts[part].row(inside), self._parts[part].place(inside))

    def place(self, index: int) -> str:
        """File and line of a prompt."""
        part, inside = self._find(index)
        return self._parts[part].place(inside)

    def column(self, name: str) -> Any:
        """Column `id`, `task` or `source` of all prompts, as a chunked array."""
        return pyarrow.chunked_array(
            [chunk for part in self._parts for chunk in part.column(name).chunks], type=pyarrow.string()
        )

    def has_code_tests(self) -> bool:
        """Whether any prompt has the tests of a program; no prompt is decoded for it."""
        return any(part.has_code_tests() for part in self._parts)

    def pools(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """For each task, for each of its sources, the indices of its prompts."""
        tasks, sources = self.column("task"), pyarrow.compute.fill_null(self.column("source"), "")
        pools: dict[str, dict[str, NDArray[np.int64]]] = {}
        for task in TASKS:
            of_task = pyarrow.compute.equal(tasks, task)
            names = sorted(pyarrow.compute.unique(sources.filter(of_task)).to_pylist())
            for name in names:
                mask = pyarrow.compute.and_(of_task, pyarrow.compute.equal(sources, name))
                pools.setdefault(task, {})[name] = np.flatnonzero(mask.to_numpy())
        return pools

    def _find(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])
