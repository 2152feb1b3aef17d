"""The Parquet files of a packed store: written in small row groups, so that one prompt can be read without the rest."""

import hashlib
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.manifest import Manifest, Shard
from megatron_urpo.data.store_schema import PACKED_SCHEMA, ROW_SCHEMA

SHARD_ROWS, GROUP_ROWS = 16384, 128
_MAX_GROUPS = 32  # row groups that a reader keeps decoded


class ShardWriter:
    """Rows in, shards of SHARD_ROWS rows out. The same rows give the same bytes, however they were handed over.

    A thread writes one while the next one's rows are made: encoding and checksums hold no interpreter lock. A context,
    left when everything is written; after an error, when what was under way has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[Any] = []
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[Shard] | None = None
        self.shards: list[Shard] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self._num_waiting:
                    self._start(pyarrow.concat_tables(self._waiting))
                self._finish()
        finally:
            self._thread.shutdown()

    def write(self, table: Any) -> None:
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        while self._num_waiting >= SHARD_ROWS:
            whole = pyarrow.concat_tables(self._waiting)
            self._start(whole.slice(0, SHARD_ROWS))
            self._waiting, self._num_waiting = [whole.slice(SHARD_ROWS)], self._num_waiting - SHARD_ROWS

    def _start(self, table: Any) -> None:
        self._finish()
        path = self._folder / f"shard_{len(self.shards):05d}.parquet"
        self._under_way = self._thread.submit(_write_shard, path, table)

    def _finish(self) -> None:
        if self._under_way:
            self.shards.append(self._under_way.result())
        self._under_way = None


def _write_shard(path: Path, table: Any) -> Shard:
    pyarrow.parquet.write_table(
        table.cast(PACKED_SCHEMA).combine_chunks(), path, row_group_size=GROUP_ROWS, compression="zstd",
        write_statistics=False, use_dictionary=["task", "source"], store_schema=False,
    )  # fmt: skip
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(path.name, table.num_rows, path.stat().st_size, digest)


class PackedRows:
    """Rows of a packed store by their number; only what is asked for is read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._ends = list(accumulate(shard.rows for shard in manifest.shards))
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def column(self, name: str) -> Any:
        """A whole column, as a chunked array."""
        return pyarrow.chunked_array(
            [chunk for i in range(len(self._ends)) for chunk in self._file(i).read(columns=[name])[name].chunks],
            type=PACKED_SCHEMA.field(name).type,
        )

    def row(self, index: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        inside = index - (self._ends[shard - 1] if shard else 0)
        group, place = divmod(inside, GROUP_ROWS)
        (row,) = self._group(shard, group).slice(place, 1).to_pylist()
        return dict(row)

    def place(self, index: int) -> str:
        return f"{self._folder}: row {index + 1}"

    def has_code_tests(self) -> bool:
        """By the kinds of tests alone, a small column."""
        kinds = (self._file(i).read(columns=["tests.kind"])["tests"].combine_chunks() for i in range(len(self._ends)))
        return any(pyarrow.compute.struct_field(kind, "kind").null_count < len(kind) for kind in kinds)

    def _group(self, shard: int, group: int) -> Any:
        key = shard, group
        if key not in self._groups:
            try:
                self._groups[key] = self._file(shard).read_row_group(group, columns=ROW_SCHEMA.names, use_threads=False)
            except (OSError, pyarrow.ArrowException) as error:
                path = self._folder / self._manifest.shards[shard].file
                raise DataError(
                    f"{path}: cannot be read: {' '.join(str(error).split())[:200]}; copy it again"
                ) from None
            if len(self._groups) > _MAX_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            described = self._manifest.shards[shard]
            path = self._folder / described.file
            try:
                parquet = pyarrow.parquet.ParquetFile(path, memory_map=True)
                if parquet.metadata.num_rows != described.rows:
                    raise OSError(f"it has {parquet.metadata.num_rows} rows, the manifest says {described.rows}")
                if missing := set(PACKED_SCHEMA.names) - set(parquet.schema_arrow.names):
                    raise OSError(f"it has no columns {', '.join(sorted(missing))}")
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{path}: is no shard of this store: {' '.join(str(error).split())[:200]}") from None
            self._files[shard] = parquet
        return self._files[shard]
