"""Files as chunks: every format gives the same rows under their own numbers; damage is an error, never fewer rows."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import find_files, read_chunks
from megatron_urpo.packing.rows import raw_rows

MIB = 1 << 20
ROWS = [{"a": i, "t": "é" * (i % 50)} for i in range(1000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def rows_of(file: Path, block: int = MIB) -> list[tuple[int, object]]:
    return [item for chunk in read_chunks(file, ["a", "t"], ["a"], MIB, block) for item in raw_rows(chunk)]


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", LINES),
        ("rows.json", LINES),
        ("rows.ndjson", b"\xef\xbb\xbf" + LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.zst", zstd(LINES)),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("rows.json.gz", gzip.compress(LINES)),
        ("rows.json", json.dumps({"first": ROWS[:600], "second": ROWS[600:]}, indent=1).encode()),
        ("rows.json", json.dumps({"first": ROWS[:600], "second": ROWS[600:]}).encode()),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    expected = list(enumerate(ROWS, start=1))
    assert rows_of(write(tmp_path / name, data)) == expected
    assert rows_of(tmp_path / name, block=100) == expected  # arrays in pieces that end anywhere


def test_a_long_first_line_is_still_a_line(tmp_path: Path) -> None:
    """Longer than what a decompressor gives at once."""
    rows = [{"a": "x" * 300_000}, {"a": 2}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert rows_of(write(tmp_path / "a.json.gz", gzip.compress(data))) == list(enumerate(rows, start=1))


def test_one_object_is_a_row_or_lists_of_rows(tmp_path: Path) -> None:
    row = {"a": [{"role": "user"}], "t": "x"}
    assert rows_of(write(tmp_path / "row.json", json.dumps(row, indent=1).encode())) == [(1, row)]
    assert rows_of(write(tmp_path / "list.json", b'{"b": [{"a": 1}], "c": [{"a": 2}]}')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


def test_parquet_and_its_columns(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "other": 1} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    assert rows_of(tmp_path / "rows.parquet") == list(enumerate(ROWS, start=1))
    with pytest.raises(DataError, match="has columns a, t, other, but no prompt"):
        list(read_chunks(tmp_path / "rows.parquet", ["prompt"], ["prompt"], MIB))
    cut = (tmp_path / "rows.parquet").read_bytes()[:-100]
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(write(tmp_path / "cut.parquet", cut))
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(write(tmp_path / "none.parquet", b"not parquet at all"))


def test_lines_keep_their_numbers_and_bad_ones_become_reasons(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b"", b'{"a": ', b'{"a": "caf\xe9"}', b'{"a": "\0"}', b"\0" * 40, b"  ", b"[1]", b'{"a": 2}']
    rows = dict(rows_of(write(tmp_path / "a.jsonl", b"\n".join(lines))))
    assert list(rows) == [1, 3, 4, 5, 6, 8, 9]
    assert (rows[1], rows[8], rows[9]) == ({"a": 1}, [1], {"a": 2})
    assert "not JSON" in str(rows[3])
    assert "not UTF-8: invalid continuation byte at byte 10" in str(rows[4])
    assert "not JSON" in str(rows[5])
    assert "not JSON" in str(rows[6])


def test_a_line_of_50_mb_is_passed_over_without_being_kept(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(50):
            file.write(b"x" * MIB)
        file.write(b'"}\n{"a": 2}\n')
    first, long, last = rows_of(tmp_path / "a.jsonl")
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 2}))
    assert long[0] == 2
    assert "max_row_mib" in str(long[1])
    assert all(
        len(line or b"") <= MIB for chunk in read_chunks(tmp_path / "a.jsonl", [], [], MIB) for line in chunk.lines
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES)[:-500], "cut off or damaged"),
        ("bits.jsonl.gz", gzip.compress(LINES)[:200] + b"\0\0\0\0" + gzip.compress(LINES)[204:], "cut off or damaged"),
        ("plain.jsonl.gz", LINES, "Not a gzipped file"),
        ("cut.jsonl.zst", zstd(LINES)[:-500], "Truncated"),
        ("plain.jsonl.zst", LINES, "cannot be read"),
        ("utf16.jsonl", '{"a": 1}\n'.encode("utf-16"), "is UTF-16"),
        ("cut.json", json.dumps(ROWS).encode()[:-40], "row 1000: is not JSON"),
        ("open.json", b'[{"a": 1}, {"a": 2}', "ends within its array, after row 2"),
        ("broken.json", b'[{"a": 1}, {"a": 2 "t": 3}, {"a": 4}]', "row 2: is not JSON"),
        ("latin.json", b'[{"a": 1}, {"a": "caf\xe9"}]', "is not UTF-8"),
        ("object.json", b'{"a": 1,\n', "is not JSON"),
        ("large.json", b'[{"a": "' + b"x" * (3 * MIB) + b'"}]', "does not end within max_row_mib"),
    ],
)
def test_damage_ends_the_reading(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(write(tmp_path / name, data))
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_finding_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.parquet", "notes.txt", ".hidden/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([str(tmp_path)], "path")
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a.jsonl.gz", "b.jsonl", "sub/c.parquet"]
    assert find_files([f"{tmp_path}/*.jsonl", f"{tmp_path}/a*"], "path") == [
        tmp_path / "b.jsonl",
        tmp_path / "a.jsonl.gz",
    ]
    with pytest.raises(DataError, match=r"sources\.0\.path: .*none.* finds no file"):
        find_files([f"{tmp_path}/none*"], "sources.0.path")
    with pytest.raises(DataError, match=r"notes\.txt: the format is told by the suffix"):
        find_files([str(tmp_path / "notes.txt")], "path")
    with pytest.raises(DataError, match="is named twice"):
        find_files([str(tmp_path), f"{tmp_path}/b.jsonl"], "path")
