"""Rows on disk between reading and writing: as they were read, then in the order of the store.

Rows are spilled in the order of the input. The second pass throws those that stay into buckets by their place in the
store and sorts one bucket at a time, so that memory holds a bucket and never the whole.
"""

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from megatron_urpo.data.ngrams import Hashes
from megatron_urpo.data.store_schema import PACKED_SCHEMA

BUCKET_BYTES = 48 << 20
_MAX_BUCKETS = 512


class Spill:
    """Record batches in the order that they come, and where each of their rows was published."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._out = file.open("wb")
        self._sizes: list[int] = []
        self._order: list[Hashes] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._sources: list[int] = []
        self._files: list[int] = []
        self._starts: list[int] = []
        self.num_rows = 0

    def write(self, batch: bytes, order: Hashes, numbers: NDArray[np.int64], source: int, file: int) -> None:
        """`numbers` of the rows in their file; `source` and `file` by their indices."""
        self._starts.append(self.num_rows)
        self._numbers.append(numbers)
        self._files.append(file)
        self._sources.append(source)
        self._out.write(batch)
        self._sizes.append(len(batch))
        self._order.append(order)
        self.num_rows += len(order)

    def close(self) -> None:
        self._out.close()

    def order(self) -> Hashes:
        return np.concatenate([*self._order, np.zeros(0, np.uint64)])

    def sources(self) -> NDArray[np.uint16]:
        """The source of each row."""
        return np.repeat(np.array(self._sources, np.uint16), [len(order) for order in self._order])

    def place(self, row: int) -> tuple[int, int]:
        """(file, number in it) of a row."""
        batch = bisect.bisect_right(self._starts, row) - 1
        return self._files[batch], int(self._numbers[batch][row - self._starts[batch]])

    def batches(self) -> Iterator[Any]:
        """The record batches again."""
        with self._file.open("rb") as file:
            for size in self._sizes:
                with pyarrow.ipc.open_stream(file.read(size)) as stream:
                    yield from stream

    def ordered(self, kept: NDArray[np.bool_], folder: Path) -> Iterator[Any]:
        """Tables that hold the `kept` rows by increasing order; `folder` is for the buckets."""
        num_buckets = min(_MAX_BUCKETS, max(1, -(-sum(self._sizes) // BUCKET_BYTES)))
        files = self._scatter(kept, folder, num_buckets)
        for file in files:
            with pyarrow.OSFile(str(file)) as stored, pyarrow.ipc.open_stream(stored) as stream:
                table = stream.read_all()
            order = table["order"].to_numpy()
            yield table.take(np.argsort(order, kind="stable")).drop_columns(["order"])
            file.unlink()

    def _scatter(self, kept: NDArray[np.bool_], folder: Path, num_buckets: int) -> list[Path]:
        schema = PACKED_SCHEMA.append(pyarrow.field("order", pyarrow.uint64()))
        files = [folder / f"bucket_{index}" for index in range(num_buckets)]
        writers = [pyarrow.ipc.new_stream(str(file), schema) for file in files]
        start = 0
        for batch, order in zip(self.batches(), self._order, strict=True):
            rows = np.flatnonzero(kept[start : start + len(order)])
            start += len(order)
            buckets = (order[rows] >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)
            for bucket in np.unique(buckets):
                ours = rows[buckets == bucket]
                columns = [*batch.take(pyarrow.array(ours)).columns, pyarrow.array(order[ours])]
                writers[int(bucket)].write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=schema))
        for writer in writers:
            writer.close()
        return files
