"""Answers of published data: 1,600 labelled solutions of GSM8K, and the golds of AIME against each other."""

import asyncio
import re
from collections.abc import Iterator

import pyarrow.parquet
import pytest

from megatron_urpo.config.reward import VerifierConfig
from megatron_urpo.reward.verifiable.answers import AnswerPattern, BadPattern
from megatron_urpo.reward.verifiable.verifier import RuleVerifier
from megatron_urpo.types import ReasoningPrompt
from tests.support.real_rows import DATA, read_jsonl

pytestmark = pytest.mark.skipif(not (DATA / "aime").is_dir(), reason=f"the public rows are not at {DATA}")
GSM8K_LINE = r"^A: (.*)$"


@pytest.fixture(scope="module")
def boxed() -> Iterator[RuleVerifier]:
    made = RuleVerifier(VerifierConfig())
    yield made
    made.close()


def truth(*answers: str) -> ReasoningPrompt:
    return ReasoningPrompt("", (), answers)


def test_every_labelled_solution_of_gsm8k_is_judged_as_labelled() -> None:
    """What the pattern finds, and what counts as equal, are both held against the publishers' own labels."""
    pairs = [
        (row["ground_truth"].rsplit("A: ", 1)[1], value)
        for row in read_jsonl(DATA / "gsm8k" / "labelled_solutions.jsonl")
        for value in row.values()
        if isinstance(value, dict)
    ]
    assert len(pairs) == 1600
    verifier = RuleVerifier(VerifierConfig(answer_pattern=GSM8K_LINE))

    async def outcomes() -> list[str]:
        asked = [verifier.verify(labelled["solution"], truth(gold)) for gold, labelled in pairs]
        return [result.outcome for result in await asyncio.gather(*asked)]

    found = asyncio.run(outcomes())
    verifier.close()
    differing = [
        (labelled["solution"], outcome)
        for (_, labelled), outcome in zip(pairs, found, strict=True)
        if (outcome == "correct") != labelled["is_correct"]
    ]
    assert differing == []
    assert found.count("correct") > 400, "labels of both kinds must be among them"
    assert found.count("wrong") > 400


def number(gold: str) -> int:
    """An answer of AIME is an integer, once written in degrees."""
    found = re.fullmatch(r"0*(\d+)(\^\\circ)?", gold)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_every_gold_of_aime_is_right_for_itself_and_for_no_other(boxed: RuleVerifier, name: str) -> None:
    rows = pyarrow.parquet.read_table(DATA / "aime" / f"{name}.parquet").to_pylist()
    golds = [row["reward_model"]["ground_truth"] for row in rows]
    assert len(golds) == 30

    async def matrix() -> list[list[str]]:
        return [
            [(await boxed.verify(f"\\boxed{{{answer}}}", truth(gold))).outcome for answer in golds] for gold in golds
        ]

    for gold, line in zip(golds, asyncio.run(matrix()), strict=True):
        right = [answer for answer, outcome in zip(golds, line, strict=True) if outcome == "correct"]
        assert {number(answer) for answer in right} == {number(gold)}


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (GSM8K_LINE, "A: 1\nA:  18 \nend", "18"),
        (r"answer is (?P<answer>\d+)( or (\d+))?", "answer is 3 or 4", "3"),
        (r"\d+", "1 then 22", "22"),
        (r"(a)|b", "a b", None),
        (GSM8K_LINE, "A:  ", None),
        (GSM8K_LINE, "B: 1", None),
    ],
)
def test_patterns(pattern: str, text: str, answer: str | None) -> None:
    assert AnswerPattern(pattern).last(text) == answer


def test_a_bad_pattern_is_named_and_an_endless_one_is_an_error_of_the_verifier() -> None:
    with pytest.raises(BadPattern, match="no regular expression"):
        AnswerPattern("(")
    verifier = RuleVerifier(VerifierConfig(answer_pattern=r"(x+x+)+y"))
    result = asyncio.run(verifier.verify("x" * 5000, truth("1")))
    assert (result.outcome, result.reward) == ("verifier_error", None)
    verifier.close()
