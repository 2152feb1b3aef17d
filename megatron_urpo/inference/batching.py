"""Which waiting completions are decoded together: a pure function of what they are, never of when they came.

A row is one completion of one request. Rows are taken in the order of their requests and join the batch while the
padded batch fits the token budget and padding stays a minor part of it. The unit is the row, so a request whose
completions do not fit one batch is spread over several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_urpo.types import GenerationRequest

# Rows are padded to the longest prompt and stepped to the longest answer of their batch. One long scoring prompt
# among many short questions would make every attention as wide as the scoring prompt, so padding is limited to a
# share of the tokens that are needed, and to what costs less than the steps of one more batch would.
MAX_PADDING_SHARE = 0.5
FREE_PADDING_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Row:
    """Completion `index` of `request`."""

    request: GenerationRequest
    index: int

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def max_new_tokens(self) -> int:
        return self.request.max_new_tokens


def plan_batch(rows: Sequence[Row], max_batch_tokens: int) -> list[Row]:
    """The rows of the next batch: the first by request order, and those after it that fit with it.

    `max_batch_tokens` bounds rows x (longest prompt + longest answer), which is what the batch's cache holds. A row
    that exceeds it alone is a batch of its own.
    """
    ordered = sorted(rows, key=_place)
    batch: list[Row] = []
    longest_prompt = longest_answer = own_tokens = 0
    for row in ordered:
        prompt, answer = max(longest_prompt, row.prompt_length), max(longest_answer, row.max_new_tokens)
        padded = (len(batch) + 1) * (prompt + answer)
        own = own_tokens + row.prompt_length + row.max_new_tokens
        allowed_padding = max(FREE_PADDING_TOKENS, MAX_PADDING_SHARE * own)
        if batch and (padded > max_batch_tokens or padded - own > allowed_padding):
            continue
        batch.append(row)
        longest_prompt, longest_answer, own_tokens = prompt, answer, own
    return batch


def _place(row: Row) -> tuple[object, ...]:
    # Requests of equal order are told apart by their content; those that agree in all of it are interchangeable.
    request = row.request
    content = (request.prompt_ids, request.num_completions, request.max_new_tokens, request.temperature)
    return (request.order, request.seed, content, row.index)
