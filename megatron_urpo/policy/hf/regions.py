"""The table's arithmetic for ranges of rows: what is read and written at a time when a model does not fit into memory.

Three views of one weight: its Hugging Face tensors, the whole Megatron tensor, a tensor-parallel rank's part. A
`Piece` ties rows of the first to rows of the second, a `Region` the second to the third.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.entries import WeightEntry
from megatron_urpo.policy.hf.table import padded_vocab_size
from megatron_urpo.policy.weights.rows import Rows


@dataclass(frozen=True)
class Piece:
    """Rows `start` up to `stop` of the whole Megatron tensor, made of `parts`: (Hugging Face name, start, stop)."""

    start: int
    stop: int
    parts: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Region:
    """`rows` rows at `whole` of a whole tensor that lie at `local` of a part, in columns `column` + `columns`.

    `columns` is None for a tensor of one axis.
    """

    local: int
    whole: int
    rows: int
    column: int = 0
    columns: int | None = None


def whole_shape(entry: WeightEntry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Of the unsharded Megatron tensor, without padding; `shapes` as `hf_shapes` gives them."""
    first = shapes[entry.hf[0]]
    return (sum(shapes[name][0] for name in entry.hf), *first[1:])


def pieces(
    entry: WeightEntry, shape: ModelShape, shapes: dict[str, tuple[int, ...]], max_bytes: int, itemsize: int
) -> Iterator[Piece]:
    """Cuts a weight into pieces of about `max_bytes`, in the order of rows; q, k and v only between groups."""
    row = prod(shapes[entry.hf[0]][1:]) * itemsize
    if entry.kind == "qkv":
        queries, dim = shape.num_heads // shape.num_query_groups * shape.head_dim, shape.head_dim
        wide = queries + 2 * dim
        for start, stop in ranges(shape.num_query_groups, max_bytes // (wide * row)):
            parts = zip(entry.hf, (queries, dim, dim), strict=True)
            yield Piece(start * wide, stop * wide, tuple((name, start * n, stop * n) for name, n in parts))
        return
    offset = 0
    for name in entry.hf:
        rows = shapes[name][0]
        for start, stop in ranges(rows, max_bytes // row):
            yield Piece(offset + start, offset + stop, ((name, start, stop),))
        offset += rows


def joined(entry: WeightEntry, parts: Sequence[Rows], shape: ModelShape) -> Rows:
    """The rows of a piece, out of those of its parts."""
    if entry.kind != "qkv":
        (rows,) = parts
        return rows
    groups = parts[1].shape[0] // shape.head_dim
    grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(grouped, axis=1).reshape(-1, *parts[0].shape[1:])


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    step = max(1, step)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def regions(entry: WeightEntry, whole: tuple[int, ...], rank: int, size: int) -> tuple[Region, ...]:
    """What tensor-parallel rank `rank` of `size` holds of a weight of shape `whole`; padding is no part of it."""
    rows, columns = whole[0], whole[1] if len(whole) > 1 else None
    if entry.kind == "replicated":
        return (Region(0, 0, rows, 0, columns),)
    if entry.kind == "row":
        assert columns is not None
        return (Region(0, 0, rows, rank * columns // size, columns // size),)
    if entry.kind == "gate_up":
        half, share = rows // 2, rows // 2 // size
        return tuple(Region(i * share, i * half + rank * share, share, 0, columns) for i in (0, 1))
    share = padded_vocab_size(rows, size) // size if entry.kind == "vocab" else rows // size
    return (Region(0, rank * share, max(0, min(share, rows - rank * share)), 0, columns),)


def local_shape(entry: WeightEntry, whole: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Of one rank's part, its padding included."""
    if entry.kind == "replicated":
        return whole
    if entry.kind == "row":
        return (whole[0], whole[1] // size)
    rows = padded_vocab_size(whole[0], size) if entry.kind == "vocab" else whole[0]
    return (rows // size, *whole[1:])


def cut(region: Region, start: int, rows: Rows) -> tuple[int, Rows] | None:
    """Of whole rows that begin at `start`: what lies in `region`, and its first local row; None where nothing does."""
    first, last = max(start, region.whole), min(start + len(rows), region.whole + region.rows)
    if first >= last:
        return None
    inside = rows[first - start : last - start]
    if region.columns is not None:
        inside = inside[:, region.column : region.column + region.columns]
    return region.local + first - region.whole, inside


def hf_rows(
    entry: WeightEntry,
    name: str,
    start: int,
    stop: int,
    shape: ModelShape,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[int, int], Rows],
) -> Rows:
    """Rows `start` up to `stop` of the Hugging Face tensor `name`, out of `read`, which gives rows of the whole."""
    position = entry.hf.index(name)
    if entry.kind != "qkv":
        offset = sum(shapes[other][0] for other in entry.hf[:position])
        return read(offset + start, offset + stop)
    queries, dim = shape.num_heads // shape.num_query_groups * shape.head_dim, shape.head_dim
    sizes = (queries, dim, dim)
    wide, size = sum(sizes), sizes[position]
    first, last = start // size, -(-stop // size)
    grouped = read(first * wide, last * wide)
    grouped = grouped.reshape(last - first, wide, *grouped.shape[1:])
    begin = sum(sizes[:position])
    mine = grouped[:, begin : begin + size].reshape(-1, *grouped.shape[2:])
    return mine[start - first * size : stop - first * size]
