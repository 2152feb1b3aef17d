"""NCSOFT/offsetbias and EvalBiasBench: two outputs of which `label` (1 or 2) is the better.

OffsetBias: `{instruction, input?, output_1, output_2, label}`. EvalBiasBench: one object of categories, each
a list of `{instruction, response1, response2, label}`.
"""

from collections.abc import Callable

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, any_text, text, user


def pair_reader(first: str, second: str) -> Callable[[Row], Fields]:
    def read(row: Row) -> Fields:
        label = row.get("label")
        if isinstance(label, bool) or label not in (1, 2):
            raise RowError(f"label is {label!r}, neither 1 nor 2")
        question = text(row, "instruction")
        if row.get("input"):
            question += f"\n\n{text(row, 'input')}"
        return {
            "messages": user(question),
            "responses": [any_text(row, first), any_text(row, second)],
            "scores": [2.0 - label, label - 1.0],
        }

    return read


OFFSETBIAS = Reader(
    "preference", ("instruction", "output_1", "output_2", "label"), pair_reader("output_1", "output_2"), ("input",)
)
EVALBIASBENCH = Reader(
    "preference", ("instruction", "response1", "response2", "label"), pair_reader("response1", "response2"), ("input",)
)
