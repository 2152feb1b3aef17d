"""Skywork/Skywork-Reward-Preference: `chosen` and `rejected` conversations that differ in their last turn alone."""

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, conversation


def read(row: Row) -> Fields:
    return chosen_rejected(conversation(row, "chosen"), conversation(row, "rejected"))


def chosen_rejected(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> Fields:
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected differ before their last turn")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"{name} ends with a turn of {turns[-1]['role']!r}, not of 'assistant'")
    return {
        "messages": chosen[:-1],
        "responses": [chosen[-1]["content"], rejected[-1]["content"]],
        "scores": [1.0, 0.0],
    }


READER = Reader("preference", ("chosen", "rejected"), read)
