"""Published rows of the example: their answers earn 1, and judged pairs become the right rankings."""

import asyncio

from megatron_urpo.data.sources.gsm8k import final_answer
from megatron_urpo.reward.verifiable.outcome import verified
from megatron_urpo.reward.verifiable.pool import MathVerifier
from tests.support.real_rows import DATA, Row, load_build, needs_real_rows, read_jsonl


@needs_real_rows
def test_published_answers_fed_as_completions_earn_1() -> None:
    rows = [row for name in ("train", "test") for row in read_jsonl(DATA / "gsm8k" / f"{name}.jsonl")]
    assert len(rows) == 1200
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


def test_rankings_tie_what_was_never_compared() -> None:
    def row(output: str, preference: float | None) -> Row:
        return {"instruction": "Why?", "output_1": "base", "output_2": output, "preference": preference}

    build = load_build()
    (ranking,) = build.rankings([[row("a", 1)], [row("b", 2)], [row("c", 2)]])
    assert ranking == {"prompt": "Why?", "responses": ["base", "a", "b", "c"], "scores": [0.5, 0.0, 1.0, 1.0]}
    assert list(build.rankings([[row("a", 1)], [row("b", None)]])) == []
