"""Published files as chunks of raw rows: JSON lines, JSON arrays and Parquet, plain or compressed.

A chunk is small and knows where its rows stand; nobody holds a whole file. Rows stay undecoded, so that the processes
that decode them share the work. A row that is too long to be honest is passed on as None, whatever its length. What
cannot be read any further (cut off, damaged, not UTF-8 at all) is an error and not a shorter file.
"""

import codecs
import glob
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.json_files import array_rows, is_one_object, object_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
CHUNK_ROWS, CHUNK_BYTES = 256, 1 << 20
BLOCK = 1 << 20
_BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file. `numbers[i]` is row i's line, or its place in an array or table, from 1.

    `lines`: the JSON text of each row, None where it is too long. `table`: a record batch in Arrow's stream format.
    `position`: bytes of the file that were read so far.
    """

    file: Path
    numbers: tuple[int, ...]
    position: int
    lines: tuple[bytes | None, ...] = ()
    table: bytes | None = None


def find_files(paths: Sequence[str], field: str) -> list[Path]:
    """Files, globs and folders, the last two in the order of names. Raises DataError where one finds nothing."""
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _is_known(file, path))
        elif path.is_file():
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
        if not files:
            kinds = ", ".join(SUFFIXES)
            raise DataError(f"{field}: {text} finds no file; give files, globs or folders with {kinds} (.gz, .zst)")
        for file in files:
            format_of(file)
        found += files
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise DataError(f"{field}: {twice} is named twice; name each file once")
    return found


def format_of(file: Path) -> tuple[str, str | None]:
    """(suffix of SUFFIXES, compression). Raises DataError for any other."""
    compression = COMPRESSIONS.get(file.suffix)
    name = file.stem if compression else file.name
    for suffix in SUFFIXES:
        if name.endswith(suffix) and not (compression and suffix == ".parquet"):
            return suffix, compression
    raise DataError(f"{file}: the format is told by the suffix; use one of {', '.join(SUFFIXES)}, JSON also .gz, .zst")


def _is_known(file: Path, root: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(root).parts):
        return False
    try:
        format_of(file)
    except DataError:
        return False
    return True


def read_chunks(
    file: Path, columns: Iterable[str], required: Iterable[str], max_row_bytes: int, block: int = BLOCK
) -> Iterator[Chunk]:
    """The rows of `file`, in order.

    Of a Parquet file only `columns` are read, and `required` must be there. `block`: bytes that an array is read by.
    Raises DataError.
    """
    suffix, compression = format_of(file)
    try:
        if suffix == ".parquet":
            yield from _table_chunks(file, set(columns), list(required))
            return
        head = _head(file, compression)
        with file.open("rb", buffering=0) as raw, _decompressed(raw, compression) as stream:
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
                head = head.removeprefix(codecs.BOM_UTF8)
            if suffix == ".json" and head.lstrip().startswith(b"["):
                numbered = array_rows(file, stream, max_row_bytes, block)
            elif suffix == ".json" and is_one_object(head):
                numbered = object_rows(file, stream, max_row_bytes, set(required))
            else:
                numbered = _line_rows(stream, max_row_bytes)
            yield from _batched(file, raw, numbered)
    except (OSError, EOFError, pyarrow.ArrowException, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read: {reason}; it may be cut off or damaged, fetch it again") from None


def _decompressed(raw: io.FileIO, compression: str | None) -> io.BufferedReader:
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK)
    if compression == "zstd":
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"), BLOCK)
    return io.BufferedReader(raw, BLOCK)


def _head(file: Path, compression: str | None) -> bytes:
    """The first bytes. Raises DataError for another encoding than UTF-8."""
    with file.open("rb", buffering=0) as raw, _decompressed(raw, compression) as stream:
        head = stream.read(BLOCK)
    if head.startswith(_BYTE_ORDER_MARKS):
        raise DataError(f"{file}: is UTF-16; JSON is exchanged in UTF-8, convert it")
    return head


def _batched(file: Path, raw: io.FileIO, numbered: Iterable[tuple[int, bytes | None]]) -> Iterator[Chunk]:
    numbers: list[int] = []
    lines: list[bytes | None] = []
    size = 0
    for number, line in numbered:
        numbers.append(number)
        lines.append(line)
        size += len(line or b"")
        if len(lines) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield Chunk(file, tuple(numbers), raw.tell(), tuple(lines))
            numbers, lines, size = [], [], 0
    if lines:
        yield Chunk(file, tuple(numbers), raw.tell(), tuple(lines))


def _line_rows(stream: io.BufferedReader, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank; of one that is too long nothing is kept."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            while (rest := stream.readline(BLOCK)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif line.strip():
            yield number, line


def _table_chunks(file: Path, columns: set[str], required: list[str]) -> Iterator[Chunk]:
    size = file.stat().st_size
    with pyarrow.parquet.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if absent := [name for name in required if name not in names]:
            raise DataError(
                f"{file}: has columns {', '.join(names)[:300]}, but no {', '.join(absent)}; name the dataset that it"
                " is, or map its names by `columns`"
            )
        total, number = parquet.metadata.num_rows, 0
        wanted = [name for name in names if name in columns]
        for batch in parquet.iter_batches(batch_size=CHUNK_ROWS, columns=wanted):
            numbers = tuple(range(number + 1, number + 1 + batch.num_rows))
            number += batch.num_rows
            yield Chunk(file, numbers, size * number // total, table=to_stream(batch))


def to_stream(batch: Any) -> bytes:
    """A record batch in Arrow's stream format."""
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()
