"""nvidia/HelpSteer3, preference: `context` of several turns, two responses, `overall_preference` from -3 to 3.

Negative: response 1 is better. 0 (about the same) stays a tie.
"""

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, any_text, conversation, number


def read(row: Row) -> Fields:
    preference = number(row, "overall_preference")
    if preference not in range(-3, 4):
        raise RowError(f"overall_preference is {preference:g}, not a whole number from -3 to 3")
    return {
        "messages": conversation(row, "context"),
        "responses": [any_text(row, "response1"), any_text(row, "response2")],
        "scores": [-preference or 0.0, preference or 0.0],
    }


READER = Reader("preference", ("context", "response1", "response2", "overall_preference"), read)
