"""MATH and MATH-500: `{problem, solution, answer?}`; without `answer` the truth is the solution's last box."""

from megatron_urpo.data.sources.base import BOX_REQUEST, Fields, Reader, Row, RowError, text, user


def read(row: Row) -> Fields:
    answer = text(row, "answer") if row.get("answer") is not None else last_box(text(row, "solution"))
    return {"messages": user(text(row, "problem")), "answers": [answer]}


def last_box(solution: str) -> str:
    """What the last `\\boxed{...}` holds, braces inside it included."""
    start = solution.rfind("\\boxed{")
    depth = 0
    for end in range(start + len("\\boxed"), len(solution)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if depth == 0:
            content = solution[start + len("\\boxed{") : end].strip()
            if content:
                return content
            break
    raise RowError("solution has no \\boxed{} with an answer, and the row has no `answer`")


READER = Reader("reasoning", ("problem",), read, ("solution", "answer"), suffix=BOX_REQUEST)
