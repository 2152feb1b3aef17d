"""Exact and near duplicates among any number of rows, with a bounded part of their keys in memory.

A row's keys go to files as it is read (`KeyWriter`): a hash of its text, and a MinHash signature (rensa, 128
permutations over 5-grams of its tokens) with the hashes of the signature's bands. Rows that share a key are found by
sorting one partition of one key's file at a time; pairs that share a band are compared by their whole signatures.

The first of two duplicates stays. Near duplicates are of the same task, and for reasoning have the same truth: a
question with another number in it and another answer is another question.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from megatron_urpo.data.ngrams import Hashes, HashSet, ngram_hashes

PERMUTATIONS, SHINGLE = 128, 5
_SEED = 1
PARTITION_ROWS = 1 << 21  # of one key, sorted at once: 16 bytes each
_COMPARED = 4096  # pairs at once
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
    # By way of an array, which takes a list of ints three times as fast as numpy does.
    return ngram_hashes([np.asarray(array("Q", own)) + np.uint64(1) for own in ids], SHINGLE)


def signatures(ids: Sequence[Sequence[int]], boilerplate: HashSet) -> NDArray[np.uint32]:
    """[texts, PERMUTATIONS]: MinHash of each text's 5-grams of tokens that are not `boilerplate`."""
    hashes, offsets = shingles(ids)
    kept = ~boilerplate.holds(hashes)
    hashes, offsets = hashes[kept], np.concatenate([[0], np.cumsum(kept)])[offsets.astype(np.int64)].astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(ids), PERMUTATIONS)


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
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(for each row the earlier row that it repeats, -1 for none; EXACT, NEAR or 0).

    `partition_rows`: about so many keys are sorted at once.
    """
    earlier, kinds = np.full(num_rows, -1, np.int64), np.zeros(num_rows, np.uint8)
    if exact:
        for rows, keys in _sharing(folder / "key_0", num_rows, partition_rows):
            first = _first(rows, keys)
            repeats = rows != first
            earlier[rows[repeats]], kinds[rows[repeats]] = first[repeats], EXACT
    if near and num_rows:
        for band in sorted(folder.glob("key_*"), key=lambda path: int(path.name[4:]))[1:]:
            for rows, keys in _sharing(band, num_rows, partition_rows):
                left = earlier[rows] < 0
                _mark_near(rows[left], keys[left], _Alike(folder / "signatures", near), earlier, kinds)
    return earlier, kinds


def _mark_near(
    rows: NDArray[np.int64], keys: Hashes, alike: "_Alike", earlier: NDArray[np.int64], kinds: NDArray[np.uint8]
) -> None:
    for _ in range(_ROUNDS):
        first = _first(rows, keys)
        others = rows != first
        rows, keys, first = rows[others], keys[others], first[others]
        found = alike(rows, first)
        earlier[rows[found]], kinds[rows[found]] = first[found], NEAR
        rows, keys = rows[~found], keys[~found]


class _Alike:
    """Whether rows are alike, by their signatures on disk."""

    def __init__(self, signatures: Path, threshold: float) -> None:
        self._least = threshold * PERMUTATIONS
        # Its pages count as memory of this process while it lives: short, and only those that were looked at.
        self._signatures = np.memmap(signatures, np.uint32, "r").reshape(-1, PERMUTATIONS)

    def __call__(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        result = np.zeros(len(rows), np.bool_)
        for start in range(0, len(rows), _COMPARED):
            block = slice(start, start + _COMPARED)
            equal = self._signatures[rows[block]] == self._signatures[others[block]]
            result[block] = np.count_nonzero(equal, axis=1) >= self._least
        return result


def _sharing(file: Path, num_rows: int, partition_rows: int) -> Iterator[tuple[NDArray[np.int64], Hashes]]:
    """(rows that share their key with another row, their keys): by key, then in the order of rows."""
    num_partitions = max(1, -(-num_rows // partition_rows))
    for partition in range(num_partitions):
        keys, rows = _partition(file, partition, num_partitions, partition_rows)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        like_next = np.append(keys[1:] == keys[:-1], [False])[: len(keys)]
        shared = like_next | np.roll(like_next, 1)
        yield rows[shared], keys[shared]


def _first(rows: NDArray[np.int64], keys: Hashes) -> NDArray[np.int64]:
    """[rows]: the first row with the same key; equal keys stand together."""
    new = np.ones(len(keys), np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    return np.asarray(rows[new][np.cumsum(new) - 1])


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
