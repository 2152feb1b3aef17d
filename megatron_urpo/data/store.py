"""Prompt stores: JSONL, gzipped JSONL or Parquet files as a user writes them, and folders as `pack` writes them.

The order of rows is part of a store: the stream draws its permutations over it. Every row of a file is read and checked
before training starts, so a bad row stops a run at once and not at the step that meets it; a packed store was checked
when it was written. `rows.py` says what a row holds.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.manifest import Manifest, read_manifest
from megatron_urpo.data.rows import parse_row, to_row
from megatron_urpo.data.shards import PackedRows
from megatron_urpo.data.store_schema import ROW_SCHEMA
from megatron_urpo.data.table import MemoryRows, PromptTable, Rows
from megatron_urpo.types import Prompt

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_BATCH = 1024


def load_prompts(paths: Sequence[Path]) -> PromptTable:
    """Every prompt of the stores, in the order of `paths` and rows.

    Raises:
        DataError: a file that is missing or unreadable, a row that breaks a rule, an id that occurs twice, no rows.
    """
    parts: list[Rows] = []
    manifests: list[tuple[Path, Manifest]] = []
    for path in paths:
        if path.is_dir():
            manifests.append((path, read_manifest(path)))
            parts.append(PackedRows(path, manifests[-1][1]))
        else:
            parts.append(_checked_rows(path))
        if not len(parts[-1]):
            raise DataError(f"{path}: holds no rows; give a store with prompts")
    table = PromptTable(parts, manifests)
    _check_ids(table)
    return table


def _checked_rows(path: Path) -> MemoryRows:
    """The rows of a file, each of which was parsed once."""
    batches: list[Any] = []
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, place, row in _read_rows(path):
        rows.append(to_row(parse_row(row, place)))
        numbers.append(number)
        if len(rows) == _BATCH:
            batches.append(pyarrow.RecordBatch.from_pylist(rows, schema=ROW_SCHEMA))
            rows = []
    batches.append(pyarrow.RecordBatch.from_pylist(rows, schema=ROW_SCHEMA))
    return MemoryRows(pyarrow.Table.from_batches(batches), str(path), numbers)


def _check_ids(table: PromptTable) -> None:
    """Raises DataError for the first id that occurs twice."""
    ids = table.column("id")
    if pyarrow.compute.count_distinct(ids).as_py() == len(ids):
        return
    first: dict[str, int] = {}
    for index, prompt_id in enumerate(ids.to_pylist()):
        if prompt_id in first:
            raise DataError(
                f"{table.place(index)}: id: {prompt_id!r} was used at {table.place(first[prompt_id])}; ids are unique"
                " over all stores of a run, rename one"
            )
        first[prompt_id] = index


def write_store(path: Path, prompts: Iterable[Prompt]) -> None:
    """Writes a store that `load_prompts` reads back; the suffix picks the format. The same prompts, the same bytes.

    Raises:
        DataError: a suffix that is none of .jsonl, .jsonl.gz, .parquet.
    """
    kind = _format(path)
    rows = [to_row(prompt) for prompt in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")  # a reader never meets half a store
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=ROW_SCHEMA), unfinished)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        unfinished.write_bytes(gzip.compress(text, mtime=0) if kind == ".jsonl.gz" else text)
    os.replace(unfinished, path)


def _format(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise DataError(f"{path}: the format of a store is told by its suffix; use one of {', '.join(_SUFFIXES)}")


def _read_rows(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(number, place, row) of each row; blank lines are passed over."""
    kind = _format(path)
    if not path.is_file():
        raise DataError(
            f"{path}: is no file; give the path of a prompt store ({', '.join(_SUFFIXES)}, or a folder that was packed)"
        )
    if kind == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        with gzip.open(path, "rb") if kind == ".jsonl.gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, f"{path}:{number}", _parse_json(line, f"{path}:{number}")
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}; write it again") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, f"{path}: row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {_one_line(error)}; write it again") from None


def _parse_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {_one_line(error)}; a store has one object a line") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
