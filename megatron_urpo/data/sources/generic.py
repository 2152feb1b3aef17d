"""Files of no particular publisher: `{prompt, answer}`, `{prompt, chosen, rejected}`, `{prompt, responses, ranks}`.

The last has `scores` or `ranks`. `prompt` is a text or a conversation. Other names of fields are given by
`columns` of a source.
"""

from megatron_urpo.data.sources.base import (
    BOX_REQUEST,
    Fields,
    Reader,
    Row,
    RowError,
    any_text,
    conversation,
    text,
    user,
)
from megatron_urpo.data.sources.skywork_preference import chosen_rejected


def read_answer(row: Row) -> Fields:
    """`answer`: a text, a number, or a list of accepted ones."""
    answer = row.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in answers):
        raise RowError(f"answer {'is missing' if answer is None else 'is no text, number or list of them'}")
    return {"messages": _prompt(row), "answers": [str(item) for item in answers]}


def read_pair(row: Row) -> Fields:
    """`chosen` and `rejected` are texts, or whole conversations, which then hold the question."""
    if isinstance(row.get("chosen"), str):
        responses = [any_text(row, "chosen"), any_text(row, "rejected")]
        return {"messages": _prompt(row), "responses": responses, "scores": [1.0, 0.0]}
    return chosen_rejected(conversation(row, "chosen"), conversation(row, "rejected"))


def read_ranked(row: Row) -> Fields:
    """Ranks count from 1, the best; of scores the larger is better. Rows have one of them."""
    responses = row.get("responses")
    if not isinstance(responses, list):
        raise RowError(f"responses {'is missing' if responses is None else 'is no list'}")
    given = {name: row[name] for name in ("ranks", "scores") if row.get(name) is not None}
    return {"messages": _prompt(row), "responses": responses, **given}


def _prompt(row: Row) -> list[dict[str, str]]:
    return user(text(row, "prompt")) if isinstance(row.get("prompt"), str) else conversation(row, "prompt")


ANSWER = Reader("reasoning", ("prompt", "answer"), read_answer, suffix=BOX_REQUEST)
PAIR = Reader("preference", ("chosen", "rejected"), read_pair, ("prompt",))
RANKED = Reader("preference", ("prompt", "responses"), read_ranked, ("ranks", "scores"))
