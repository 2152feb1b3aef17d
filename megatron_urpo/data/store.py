"""Prompt stores: files of prompts in JSONL, gzipped JSONL or Parquet; `rows.py` says what a row holds.

The order of rows is part of a store: the stream draws its permutations over it. Everything is read and checked before
training starts, so a bad row stops a run at once and not at the step that meets it.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.rows import parse_row, to_row
from megatron_urpo.types import Prompt

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_TESTS = pyarrow.struct(
    [
        *((name, pyarrow.string()) for name in ("kind", "import_prefix", "test_code", "entry_point", "fn_name")),
        *((name, pyarrow.list_(pyarrow.string())) for name in ("inputs", "outputs")),
    ]
)
_PARQUET_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("task", pyarrow.string()),
        ("messages", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ("source", pyarrow.string()),
        ("answers", pyarrow.list_(pyarrow.string())),
        ("tests", _TESTS),
        ("responses", pyarrow.list_(pyarrow.string())),
        ("scores", pyarrow.list_(pyarrow.float64())),
    ]
)


def load_prompts(paths: Sequence[Path]) -> list[Prompt]:
    """Every prompt of the stores, in the order of `paths` and rows.

    Raises:
        DataError: a file that is missing or unreadable, a row that breaks a rule, an id that occurs twice, no rows.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for path in paths:
        num_before = len(prompts)
        for place, row in _read_rows(path):
            prompt = parse_row(row, place)
            if prompt.id in places:
                raise DataError(
                    f"{place}: id: {prompt.id!r} was used at {places[prompt.id]}; ids are unique over all stores of a"
                    " run, rename one"
                )
            places[prompt.id] = place
            prompts.append(prompt)
        if len(prompts) == num_before:
            raise DataError(f"{path}: holds no rows; give a store with prompts")
    return prompts


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
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_PARQUET_SCHEMA), unfinished)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        unfinished.write_bytes(gzip.compress(text, mtime=0) if kind == ".jsonl.gz" else text)
    os.replace(unfinished, path)


def _format(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise DataError(f"{path}: the format of a store is told by its suffix; use one of {', '.join(_SUFFIXES)}")


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row; blank lines are passed over."""
    kind = _format(path)
    if not path.is_file():
        raise DataError(f"{path}: is no file; give the path of a prompt store ({', '.join(_SUFFIXES)})")
    if kind == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        with gzip.open(path, "rb") if kind == ".jsonl.gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse_json(line, f"{path}:{number}")
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}; write it again") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {_one_line(error)}; write it again") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _parse_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {_one_line(error)}; a store has one object a line") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
