"""Duplicates, evaluation questions and subsampled rankings, each beside a naive version or by hand."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.data.candidates import choose_candidates
from megatron_urpo.data.decontaminate import EvaluationQuestions
from megatron_urpo.data.duplicates import (
    EXACT,
    NEAR,
    SHINGLE,
    KeyWriter,
    band_hashes,
    find_duplicates,
    num_bands,
    signatures,
)  # fmt: skip
from megatron_urpo.data.ngrams import HashSet, WordHasher, hash_bytes, ngram_hashes

NONE = HashSet(np.zeros(0, np.uint64))


def jaccard(a: list[int], b: list[int]) -> float:
    first, second = ({tuple(ids[i : i + SHINGLE]) for i in range(len(ids) - SHINGLE + 1)} for ids in (a, b))
    return len(first & second) / len(first | second)


def edited(ids: list[int], num_edits: int, rng: random.Random) -> list[int]:
    changed = list(ids)
    for place in rng.sample(range(len(ids)), num_edits):
        changed[place] = rng.randrange(1000, 2000)
    return changed


def find(
    folder: Path,
    texts: list[list[int]],
    salts: list[int] | None = None,
    near: float = 0.8,
    partition_rows: int = 1 << 21,
) -> tuple[list[int], bytes]:
    bands = num_bands(near)
    keys = KeyWriter(folder / "keys", bands)
    for ids, salt in zip(texts, salts or [0] * len(texts), strict=True):
        signature = signatures([ids], NONE)
        exact = np.array([hash_bytes(repr(ids).encode())], np.uint64)
        keys.write(exact, band_hashes(signature, np.array([salt], np.uint64), bands), signature)
    keys.close()
    earlier, kinds = find_duplicates(folder / "keys", len(texts), True, near, partition_rows)
    return earlier.tolist(), bytes(kinds)


@pytest.mark.parametrize("partition_rows", [1 << 21, 90])
def test_duplicates_are_those_of_all_pairs(tmp_path: Path, partition_rows: int) -> None:
    """60 families of likeness 0.97 and below 0.5, far from the threshold on either side: the estimate has a standard
    deviation of at most sqrt(0.25 / 128) = 0.044, and 0.8 is six of them from 0.5."""
    rng = random.Random(0)
    texts: list[list[int]] = []
    expected: list[int] = []
    for _ in range(60):
        base = len(texts)
        original = [rng.randrange(1000) for _ in range(400)]
        close, far = edited(original, 1, rng), edited(original, 40, rng)
        assert jaccard(original, close) > 0.95
        assert jaccard(original, far) < 0.5
        texts += [original, close, far, original]
        expected += [-1, base, -1, base]
    earlier, kinds = find(tmp_path, texts, partition_rows=partition_rows)
    assert earlier == expected
    assert kinds == bytes([0, NEAR, 0, EXACT]) * 60


def test_another_truth_is_another_question_and_thresholds_count(tmp_path: Path) -> None:
    rng = random.Random(1)
    original = [rng.randrange(1000) for _ in range(400)]
    texts = [original, edited(original, 1, rng)]
    assert find(tmp_path / "a", texts, [7, 8])[0] == [-1, -1]
    assert find(tmp_path / "b", texts, [7, 7])[0] == [-1, 0]
    assert find(tmp_path / "c", texts, near=1.0)[0] == [-1, -1]


def test_bands_find_a_pair_at_the_threshold_nineteen_times_in_twenty() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.99):
        bands = num_bands(threshold)
        assert 1 - (1 - threshold ** (128 // bands)) ** bands >= 0.95
    assert num_bands(1.0) == 2


def test_what_every_prompt_shares_makes_none_alike() -> None:
    template = list(range(5000, 5200))
    texts = [[*template, *(1000 * k + i for i in range(20))] for k in range(2)]
    boilerplate = HashSet(ngram_hashes([np.array(template, np.uint64) + np.uint64(1)], SHINGLE)[0])
    with_it, without = (np.mean(np.equal(*signatures(texts, shared))) for shared in (NONE, boilerplate))
    assert with_it > 0.7
    assert without < 0.2  # the four shingles over its end are still shared


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5), st.integers(1, 4))
def test_ngrams_are_equal_exactly_where_words_are(texts: list[list[int]], n: int) -> None:
    hashes, offsets = ngram_hashes([np.array(text, np.uint64) + np.uint64(1) for text in texts], n)
    expected = [tuple(text[i : i + n]) for text in texts for i in range(max(1, len(text) - n + 1))]
    assert len(hashes) == len(expected) == offsets[-1]
    seen: dict[int, tuple[int, ...]] = {}
    for value, gram in zip(hashes.tolist(), expected, strict=True):
        assert seen.setdefault(value, gram) == gram
    assert len(seen) == len(set(expected))


# Near multiples of a large power of two many share their low bits, and few are the same.
ALIKE = st.builds(lambda high, low: (high << 40) + low, st.integers(0, 9), st.integers(0, 20))


@given(st.lists(ALIKE), st.lists(ALIKE | st.integers(0, 2**64 - 1)))
def test_a_hash_set_holds_what_a_set_holds(members: list[int], values: list[int]) -> None:
    found = HashSet(np.array(members, np.uint64)).holds(np.array(values, np.uint64))
    assert found.tolist() == [value in set(members) for value in values]


# --------------------------------------------------------------------------------------------- contamination
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "river", "stone", "cloud", "seven", "green"]
QUESTION = "If Anna walks nine kilometres at a constant speed, and then two more, how long does it take her in hours?"
TAIL = " Let's think step by step and output the final answer within \\boxed{}."


def matched(questions: list[str], prompts: list[str], n: int = 8, overlap: float = 0.5) -> list[str | None]:
    index = EvaluationQuestions.build(questions, [f"eval:{i}" for i in range(len(questions))], n, overlap)
    return [match and match.place for match in index.matches(prompts, WordHasher())]


def test_a_question_is_found_inside_another_text_and_in_other_letters() -> None:
    prompts = [
        QUESTION,
        QUESTION.upper(),
        f"Here is a puzzle.\n\n{QUESTION}\n\nExplain.",
        QUESTION.replace("nine", "ten"),  # 8 of its 15 n-grams are left
        "If Anna walks nine kilometres at a constant speed, she is tired.",
        "How long does it take?",
        "",
    ]
    assert matched(["Something else entirely.", QUESTION], prompts) == ["eval:1"] * 4 + [None] * 3


def test_boilerplate_of_a_benchmark_contaminates_nothing() -> None:
    rng = random.Random(0)
    questions = [f"What is {' '.join(rng.choices(WORDS, k=8))}?{TAIL}" for _ in range(20)]
    assert matched(questions, [f"Another sum.{TAIL}", questions[3]], overlap=0.3) == [None, "eval:3"]
    # With few questions it cannot be told from them.
    assert matched(questions[:2], [f"Another sum.{TAIL}"], overlap=0.3) == ["eval:0"]


def test_a_short_question_counts_only_as_the_whole_prompt() -> None:
    assert matched(["Name a fruit."], ["name a  fruit .", "Name a fruit. And another."]) == ["eval:0", None]


def test_the_index_survives_its_file(tmp_path: Path) -> None:
    index = EvaluationQuestions.build([QUESTION, "Why?"], ["a:1", "b:2"], 8, 0.5)
    index.save(tmp_path / "questions.npz")
    again = EvaluationQuestions.load(tmp_path / "questions.npz")
    prompts = [QUESTION, "Why?", "no"]
    assert again.matches(prompts, WordHasher()) == index.matches(prompts, WordHasher())


# ------------------------------------------------------------------------------------------------ candidates
def test_candidates_by_hand() -> None:
    assert choose_candidates([3, 1, 2], 3, "s") == [0, 1, 2]
    assert choose_candidates([1, 5, 3], 2, "s") == [0, 1]  # best and worst
    assert choose_candidates([1, 1, 1, 1, 9], 2, "s")[-1] == 4
    assert len(choose_candidates([2, 2, 2], 2, "s")) == 2


def untied_pairs(gold: list[int]) -> int:
    return sum(gold[i] != gold[j] for i in range(len(gold)) for j in range(i))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=7), st.integers(2, 6), st.text(max_size=3))
def test_candidates_keep_as_many_levels_as_they_can(gold: list[int], count: int, seed: str) -> None:
    kept = choose_candidates(gold, count, seed)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, len(gold))
    assert choose_candidates(gold, count, seed) == kept
    values = [gold[i] for i in kept]
    assert len(set(values)) == min(len(set(gold)), len(kept))
    assert {min(gold), max(gold)} <= set(values)
