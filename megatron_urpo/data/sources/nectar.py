"""berkeley-nest/Nectar: a conversation in one text, `\\n\\nHuman: ... \\n\\nAssistant: `, and seven ranked answers.

Rank 1 is best; ranks are fractions where answers tie.
"""

import re

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, any_text, number, rows_of, text

_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read(row: Row) -> Fields:
    answers = rows_of(row, "answers")
    return {
        "messages": split_turns(text(row, "prompt")),
        "responses": [any_text(answer, "answer") for answer in answers],
        "ranks": [number(answer, "rank") for answer in answers],
    }


def split_turns(prompt: str) -> list[dict[str, str]]:
    """The turns, the last `Assistant:`, which waits for an answer, left out."""
    before, *pieces = _SPEAKER.split(prompt)
    turns = [
        {"role": _ROLES[who], "content": said.strip()} for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if before.strip() or not turns:
        raise RowError("prompt does not begin with `Human:`")
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if [turn["role"] for turn in turns] != expected or len(turns) % 2 == 0:
        raise RowError("prompt's turns do not alternate from `Human:` to a last `Human:`")
    return turns


READER = Reader("preference", ("prompt", "answers"), read)
