"""The example's readers: published rows become prompts with the right truth and the right ranking."""

import asyncio

import pytest

from megatron_urpo.reward.verifiable.outcome import verified
from megatron_urpo.reward.verifiable.pool import MathVerifier
from tests.support.real_rows import DATA, Row, load_readers, needs_real_rows, read_jsonl


@needs_real_rows
def test_published_answers_fed_as_completions_earn_1() -> None:
    rows = [row for name in ("train", "test") for row in read_jsonl(DATA / "gsm8k" / f"{name}.jsonl")]
    assert len(rows) == 1200
    final_answer = load_readers().final_answer
    verifier = MathVerifier(workers=1, timeout_seconds=5.0, memory_mib=1024)

    async def reward(row: Row, offset: int) -> float | None:
        """Of the published solution with its last line boxed as published, or a number beside it."""
        solution, answer = row["answer"].split("#### ")
        shown = answer if not offset else str(int(answer.replace(",", "")) + offset)
        outcome = await verifier.verify(f"{solution}\\boxed{{{shown}}}", (final_answer(row["answer"]),))
        return verified(outcome).reward

    async def rewards(offset: int) -> list[float | None]:
        return await asyncio.gather(*(reward(row, offset) for row in rows))

    try:
        assert set(asyncio.run(rewards(0))) == {1.0}
        assert set(asyncio.run(rewards(1))) == {0.0}
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("preference", "gold"),
    [(1, (1.0, 0.0)), (2.0, (0.0, 1.0)), (1.5, (0.5, 0.5)), (0, (0.5, 0.5)), (1.25, (0.75, 0.25)), (None, None)],
)
def test_preferences_become_gold_values(preference: float | None, gold: tuple[float, float] | None) -> None:
    assert load_readers().gold_pair(preference) == gold


@pytest.mark.parametrize("preference", [0.5, 3, -1])
def test_a_preference_outside_its_scale_is_an_error(preference: float) -> None:
    with pytest.raises(ValueError, match="is none of null, 0 and 1 to 2"):
        load_readers().gold_pair(preference)


def test_rows_without_a_preference_are_left_out_and_rankings_tie_what_was_never_compared() -> None:
    def row(output: str, preference: float | None) -> Row:
        return {"instruction": "Why?", "output_1": "base", "output_2": output, "preference": preference}

    readers = load_readers()
    pairs = list(readers.pairs("x", [row("a", 1), row("b", None), row("c", 2)]))
    assert [(pair.id, pair.responses, pair.gold) for pair in pairs] == [
        ("alpaca_eval/x/0", ("base", "a"), (1.0, 0.0)),
        ("alpaca_eval/x/2", ("base", "c"), (0.0, 1.0)),
    ]
    (ranking,) = readers.rankings([[row("a", 1)], [row("b", 2)], [row("c", 2)]])
    assert (ranking.responses, ranking.gold) == (("base", "a", "b", "c"), (0.5, 0.0, 1.0, 1.0))
    assert list(readers.rankings([[row("a", 1)], [row("b", None)]])) == []
