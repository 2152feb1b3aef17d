"""Exact and near duplicates among any number of rows, with a bounded part of their keys in memory.

A row's keys go to files as it is read (`KeyWriter`): a hash of its text, and a MinHash signature (rensa, 128
permutations over 5-grams of its tokens) with the hashes of the signature's bands. Rows that share a key are found by
sorting one partition of one key's file at a time; pairs that share a band are compared by their whole signatures.

The first of two duplicates stays. Near duplicates are of the same task, and for reasoning have the same truth: a
question with another number in it and another answer is another question.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from megatron_urpo.data.ngrams import Hashes, ngram_hashes

PERMUTATIONS, SHINGLE = 128, 5
_SEED = 1
PARTITION_ROWS = 1 << 21  # of one key, sorted at once: 16 bytes each
_ROUNDS = 4  # of comparing what shares a band: by then few rows that are alike have not met

EXACT, NEAR = 1, 2


def num_bands(threshold: float) -> int:
    """Bands of equal width that let a pair at `threshold` meet with probability 0.95 or more, the fewest that do."""
    for bands in (2, 4, 8, 16, 32, 64):
        if 1 - (1 - threshold ** (PERMUTATIONS // bands)) ** bands >= 0.95:
            return bands
    return PERMUTATIONS


def shingles(ids: Sequence[Sequence[int]]) -> tuple[Hashes, NDArray[np.uint64]]:
    """(hashes of every 5-gram of every text's tokens, offsets of each text's own)."""
    return ngram_hashes([np.array(own, np.uint64) + np.uint64(1) for own in ids], SHINGLE)


def signatures(ids: Sequence[Sequence[int]], boilerplate: Hashes) -> NDArray[np.uint32]:
    """[texts, PERMUTATIONS]: MinHash of each text's 5-grams of tokens that are not `boilerplate` (sorted)."""
    hashes, offsets = shingles(ids)
    kept = ~_is_among(hashes, boilerplate)
    hashes, offsets = hashes[kept], np.concatenate([[0], np.cumsum(kept)])[offsets.astype(np.int64)].astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(ids), PERMUTATIONS)


def _is_among(values: Hashes, sorted_set: Hashes) -> NDArray[np.bool_]:
    if not len(sorted_set):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(sorted_set, values), len(sorted_set) - 1)
    return np.asarray(sorted_set[places] == values)


def band_hashes(signature: NDArray[np.uint32], salts: Hashes, bands: int) -> Hashes:
    """[bands, texts]: equal where two texts of the same salt agree in a whole band."""
    rows = signature.reshape(len(signature), bands, PERMUTATIONS // bands).astype(np.uint64)
    mixed = np.repeat(salts[:, None], bands, axis=1)
    with np.errstate(over="ignore"):
        for column in range(rows.shape[2]):
            mixed = (mixed ^ rows[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(31)
    return np.ascontiguousarray(mixed.T)


class KeyWriter:
    """The keys of rows in the order of the rows, one file a key."""

    def __init__(self, folder: Path, bands: int) -> None:
        """`bands` 0: no near duplicates."""
        folder.mkdir(parents=True)
        self._keys = [(folder / f"key_{index}").open("wb") for index in range(1 + bands)]
        self._signatures = (folder / "signatures").open("wb")

    def write(self, exact: Hashes, bands: Hashes, signature: NDArray[np.uint32]) -> None:
        for file, key in zip(self._keys, [exact, *bands], strict=True):
            file.write(key.tobytes())
        self._signatures.write(signature.tobytes())

    def close(self) -> None:
        for file in (*self._keys, self._signatures):
            file.close()


def find_duplicates(
    folder: Path, num_rows: int, exact: bool, near: float, partition_rows: int = PARTITION_ROWS
) -> tuple[NDArray[np.int64], bytearray]:
    """(for each row the earlier row that it repeats, -1 for none; EXACT, NEAR or 0).

    `partition_rows`: about so many keys are sorted at once.
    """
    earlier = np.full(num_rows, -1, np.int64)
    kinds = bytearray(num_rows)
    if exact:
        for rows in _groups(folder / "key_0", num_rows, partition_rows):
            earlier[rows[1:]] = rows[0]
            for row in rows[1:]:
                kinds[row] = EXACT
    if near:
        with (folder / "signatures").open("rb") as file:
            compare = _Compare(file.fileno(), near)
            for band in sorted(folder.glob("key_*"), key=lambda path: int(path.name[4:])):
                if band.name == "key_0":
                    continue
                for rows in _groups(band, num_rows, partition_rows):
                    _mark_near(rows[earlier[rows] < 0], compare, earlier, kinds)
    return earlier, kinds


def _mark_near(rows: NDArray[np.int64], compare: "_Compare", earlier: NDArray[np.int64], kinds: bytearray) -> None:
    for _ in range(_ROUNDS):
        if len(rows) < 2:
            return
        alike = compare(rows)
        earlier[rows[1:][alike]] = rows[0]
        for row in rows[1:][alike]:
            kinds[row] = NEAR
        rows = rows[1:][~alike]


class _Compare:
    """Estimated similarity of rows by their signatures on disk."""

    def __init__(self, file: int, threshold: float) -> None:
        self._file, self._least = file, threshold * PERMUTATIONS

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row but the first is like the first."""
        first = self._read(int(rows[0]))
        return np.array([np.count_nonzero(self._read(int(row)) == first) >= self._least for row in rows[1:]])

    def _read(self, row: int) -> NDArray[np.uint32]:
        size = 4 * PERMUTATIONS
        return np.frombuffer(os.pread(self._file, size, row * size), np.uint32)


def _groups(file: Path, num_rows: int, partition_rows: int) -> Iterator[NDArray[np.int64]]:
    """Rows that share a key, each group in the order of rows."""
    num_partitions = max(1, -(-num_rows // partition_rows))
    for partition in range(num_partitions):
        keys, rows = _partition(file, partition, num_partitions, partition_rows)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        new = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
        ends = np.append(new[1:], len(keys))
        for start, end in zip(new[ends - new > 1], ends[ends - new > 1], strict=True):
            yield rows[start:end]


def _partition(
    file: Path, partition: int, num_partitions: int, partition_rows: int
) -> tuple[Hashes, NDArray[np.int64]]:
    keys, rows, start = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    with file.open("rb") as stream:
        while len(block := np.frombuffer(stream.read(8 * partition_rows), np.uint64)):
            ours = np.flatnonzero(block % np.uint64(num_partitions) == partition)
            keys.append(block[ours])
            rows.append(ours + start)
            start += len(block)
    return np.concatenate(keys), np.concatenate(rows)
