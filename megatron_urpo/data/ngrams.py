"""Words as 64-bit numbers, and all n-grams of many texts at once.

Hashes depend on the text alone: not on the process, its hash seed or the order of texts.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication loses nothing
_PLACES = 8  # in a HashSet's table for each of its hashes
_MAX_WORDS = 1 << 18  # that are remembered; the dictionary of a large corpus would not stop growing


def hash_bytes(data: bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = self[word] = hash_bytes(word.encode("utf-8", "surrogatepass"))
        return value


class WordHasher:
    """Remembers the words it has met, since few words make most of a text."""

    def __init__(self) -> None:
        self._known = _Known()

    def __call__(self, words: Sequence[str]) -> Hashes:
        """[words]: one number each."""
        if len(self._known) > _MAX_WORDS:
            self._known.clear()
        return np.fromiter(map(self._known.__getitem__, words), np.uint64, len(words))


def ngram_hashes(texts: Sequence[Hashes], n: int) -> tuple[Hashes, NDArray[np.uint64]]:
    """(hashes of every n-gram of every text, one after the other; offsets [texts + 1] of each text's own).

    A text of fewer than n words has one n-gram, itself. An empty one has that of no words.
    """
    padded = [words if len(words) >= n else _padded(words, n) for words in texts]
    counts = np.array([len(words) - n + 1 for words in padded], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    if not padded:
        return np.zeros(0, np.uint64), offsets
    words = np.concatenate(padded)
    mixed = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(n):
            mixed = (mixed * _FACTOR) ^ words[place : len(words) - n + 1 + place]
            mixed ^= mixed >> np.uint64(29)
    starts = np.concatenate([[0], np.cumsum([len(words) for words in padded])])
    inside = np.concatenate([np.arange(starts[i], starts[i] + counts[i]) for i in range(len(padded))])
    return mixed[inside], offsets


class HashSet:
    """Hashes in which many others are looked up at once.

    Nearly all of those are not in it, and a table of its hashes' low bits says so of most without a search.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._sorted = np.unique(hashes)
        self._mask = np.uint64((_PLACES << len(self._sorted).bit_length()) - 1)
        self._table = np.zeros(int(self._mask) + 1, np.bool_)
        self._table[self._low_bits(self._sorted)] = True

    def holds(self, values: Hashes) -> NDArray[np.bool_]:
        """[values]: whether each is in the set."""
        result = np.zeros(len(values), np.bool_)
        likely = np.flatnonzero(self._table[self._low_bits(values)])
        places = np.searchsorted(self._sorted, values[likely])
        result[likely] = self._sorted[np.minimum(places, len(self._sorted) - 1)] == values[likely]
        return result

    def _low_bits(self, values: Hashes) -> NDArray[np.intp]:
        return (values & self._mask).astype(np.intp)


def _padded(words: Hashes, n: int) -> Hashes:
    return np.concatenate([words, np.zeros(n - len(words), np.uint64)])
