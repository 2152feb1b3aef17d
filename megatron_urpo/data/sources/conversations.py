"""OpenRLHF/prompt-collection (`context_messages`), allenai/tulu-3-sft-mixture and any file of `{messages}`.

The prompt ends with the user's last turn: an answer of the assistant after it is left out.
"""

from collections.abc import Callable

from megatron_urpo.data.sources.base import Fields, Reader, Row, conversation


def conversation_reader(name: str) -> Callable[[Row], Fields]:
    def read(row: Row) -> Fields:
        messages = conversation(row, name)
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return {"messages": messages}

    return read


PROMPT_COLLECTION = Reader("instruction", ("context_messages",), conversation_reader("context_messages"))
MESSAGES = Reader("instruction", ("messages",), conversation_reader("messages"))
