"""tatsu-lab/alpaca_eval: judged pairs, and the instructions of an `outputs` file.

`preference` runs from 1 (output_1 is better) to 2 (output_2); 1.5 is a tie, and so is the 0 that the published files
write where both outputs are the same text. Null: the annotator gave none.
"""

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, any_text, number, text, user


def read_annotation(row: Row) -> Fields:
    if row.get("preference") is None:
        raise RowError("preference is null: the annotator gave none")
    return {
        "messages": user(text(row, "instruction")),
        "responses": [any_text(row, "output_1"), any_text(row, "output_2")],
        "scores": gold_pair(number(row, "preference")),
    }


def gold_pair(preference: float) -> list[float]:
    if preference == 0:
        return [0.5, 0.5]
    if not 1 <= preference <= 2:
        raise RowError(f"preference is {preference!r}, none of null, 0 and 1 to 2")
    return [2.0 - preference, preference - 1.0]


def read_instruction(row: Row) -> Fields:
    return {"messages": user(text(row, "instruction"))}


ANNOTATIONS = Reader("preference", ("instruction", "output_1", "output_2", "preference"), read_annotation)
INSTRUCTIONS = Reader("instruction", ("instruction",), read_instruction)
