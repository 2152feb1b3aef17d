"""openai/gsm8k: `{question, answer}`; the truth follows the last `#### `, thousands separators removed."""

from megatron_urpo.data.sources.base import BOX_REQUEST, Fields, Reader, Row, RowError, text, user


def read(row: Row) -> Fields:
    return {"messages": user(text(row, "question")), "answers": [final_answer(text(row, "answer"))]}


def final_answer(solution: str) -> str:
    """`... #### 1,234` -> `1234`."""
    _, mark, answer = solution.rpartition("#### ")
    if not mark or not answer.strip():
        raise RowError("answer has no `#### ` before a final answer")
    return answer.strip().replace(",", "")


READER = Reader("reasoning", ("question", "answer"), read, suffix=BOX_REQUEST)
