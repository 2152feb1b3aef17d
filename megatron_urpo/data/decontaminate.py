"""Training prompts that hold an evaluation question, by n-gram overlap.

A prompt is contaminated if it holds at least `overlap` of the n-grams of one evaluation question: its own, so a
long prompt around a short question is found too. Words and marks are those of nltk's WordPunctTokenizer, letter
case aside. Questions are compared with questions, not with candidates' answers.

N-grams of more than five different evaluation questions are a benchmark's boilerplate (\"output the final answer within
\\boxed{}\") and count for none. A question shorter than an n-gram counts only where it is the whole prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from nltk import redos
from nltk.tokenize import WordPunctTokenizer
from numpy.typing import NDArray

from megatron_urpo.data.ngrams import Hashes, HashSet, WordHasher, ngram_hashes
from megatron_urpo.types import Message

BOILERPLATE = 5
# nltk 3.10 gives each match 5 seconds of the wall clock, against patterns that users write: on a busy machine the words
# of a long row would be a TimeoutError. None turns that off; goes when a tokenizer itself can be told so.
redos.DEFAULT_TIMEOUT = None
_words_and_marks = WordPunctTokenizer().tokenize


@dataclass(frozen=True, slots=True)
class Match:
    """`place`: of the evaluation question; `overlap`: share of its n-grams that were found."""

    place: str
    overlap: float


def question_of(messages: Sequence[Message]) -> str:
    """What a person asked: of a conversation every turn that is the user's."""
    return "\n".join(message.content for message in messages if message.role == "user")


def words_of(text: str, hasher: WordHasher) -> Hashes:
    return hasher(_words_and_marks(text.casefold()))


class EvaluationQuestions:
    """N-grams of evaluation questions, sorted, with the question that each belongs to."""

    def __init__(self, n: int, overlap: float, grams: Hashes, owners: NDArray[np.int64], places: Sequence[str]):
        self._n, self._overlap, self._places = n, overlap, places
        order = np.lexsort((owners, grams))
        self._grams, self._owners = grams[order], owners[order]
        self._known = HashSet(grams)
        self._counts = np.bincount(owners, minlength=len(places))

    @classmethod
    def build(cls, questions: Sequence[str], places: Sequence[str], n: int, overlap: float) -> "EvaluationQuestions":
        hasher = WordHasher()
        # The same question twice, in two files or two formats, is one question.
        distinct = {words_of(question, hasher).tobytes(): i for i, question in reversed(list(enumerate(questions)))}
        indices = sorted(distinct.values())
        words = [words_of(questions[i], hasher) for i in indices]
        hashes, offsets = ngram_hashes(words, n)
        per_question = [np.unique(hashes[int(start) : int(end)]) for start, end in pairwise(offsets)]
        grams = np.concatenate([*per_question, np.zeros(0, np.uint64)])
        owners = np.repeat(np.arange(len(indices)), [len(own) for own in per_question])
        _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
        telling = counts[inverse] <= BOILERPLATE
        return cls(n, overlap, grams[telling], owners[telling], [places[i] for i in indices])

    def save(self, file: Path) -> None:
        np.savez(file, grams=self._grams, owners=self._owners, places=np.array(self._places, dtype=np.str_),
                 rule=np.array([self._n, self._overlap]))  # fmt: skip

    @classmethod
    def load(cls, file: Path) -> "EvaluationQuestions":
        with np.load(file) as kept:
            n, overlap = kept["rule"]
            return cls(int(n), float(overlap), kept["grams"], kept["owners"], kept["places"].tolist())

    def matches(self, questions: Sequence[str], hasher: WordHasher) -> list[Match | None]:
        """For each prompt the evaluation question that it holds most of, where that is too much."""
        if not len(self._grams):
            return [None] * len(questions)
        hashes, offsets = ngram_hashes([words_of(question, hasher) for question in questions], self._n)
        found = np.flatnonzero(self._known.holds(hashes))
        borders = np.searchsorted(found, offsets.astype(np.int64))
        return [self._best(hashes[found[a:b]]) if a < b else None for a, b in pairwise(borders)]

    def _best(self, hashes: Hashes) -> Match | None:
        """Of one prompt's n-grams that are any question's."""
        hashes = np.unique(hashes)
        first, last = (np.searchsorted(self._grams, hashes, side) for side in ("left", "right"))
        owners = np.concatenate([self._owners[start:end] for start, end in zip(first, last, strict=True)])
        shares = np.bincount(owners, minlength=len(self._counts)) / np.maximum(self._counts, 1)
        best = int(np.argmax(shares))
        return Match(self._places[best], float(shares[best])) if shares[best] >= self._overlap else None
