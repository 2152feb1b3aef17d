"""openbmb/UltraFeedback: an instruction and four completions with an `overall_score` each.

Its first release gave some completions an `overall_score` of 10 that should be 1. By the rule of its card a 10 whose
fine-grained mean is at most 2 becomes 1.
"""

from megatron_urpo.data.sources.base import Fields, Reader, Row, any_text, number, rows_of, text, user

FAULTY_SCORE, CORRECTED_SCORE, HIGHEST_FAULTY_MEAN = 10.0, 1.0, 2.0


def read(row: Row) -> Fields:
    completions = rows_of(row, "completions")
    return {
        "messages": user(text(row, "instruction")),
        "responses": [any_text(completion, "response") for completion in completions],
        "scores": [score(completion) for completion in completions],
    }


def score(completion: Row) -> float:
    overall = number(completion, "overall_score")
    if overall == FAULTY_SCORE and number(completion, "fine-grained_score") <= HIGHEST_FAULTY_MEAN:
        return CORRECTED_SCORE
    return overall


READER = Reader("preference", ("instruction", "completions"), read)
