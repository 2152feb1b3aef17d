"""The scoring prompt: a question and N candidates in seeded order, within the referee's token limit.

Candidates and question are neutralised first, then put into the template in one pass: text that looks like a
placeholder stays text.
"""

import random
import re
from collections.abc import Callable, Sequence

from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.protocols import ChatTokenizer
from megatron_urpo.rollout.neutralise import Neutraliser
from megatron_urpo.types import Message, ScoringPrompt

CUT_MARK = " [cut]"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class ScoringPrompts:
    """Renders scoring prompts for one referee config and one tokenizer."""

    def __init__(self, referee: RefereeConfig, tokenizer: ChatTokenizer) -> None:
        self._referee = referee
        self._tokenizer = tokenizer
        self._neutralise = Neutraliser(referee.template, tokenizer.special_tokens)

    def render(self, messages: Sequence[Message], responses: Sequence[str], seed: int) -> ScoringPrompt | None:
        """The prompt, its candidates in an order drawn from `seed`.

        Responses are cut where `referee.max_prompt_tokens` asks for it. None where that is not allowed
        (`referee.overflow: skip`) or not enough (the question alone fills the limit).
        """
        permutation = list(range(len(responses)))
        random.Random(seed).shuffle(permutation)
        question = self._question(messages)
        texts = [self._neutralise(responses[candidate]) for candidate in permutation]
        prompt_ids = self._encode(question, texts)
        num_cut = 0
        if len(prompt_ids) > self._referee.max_prompt_tokens:
            cut = self._cut_to_fit(question, texts) if self._referee.overflow == "truncate" else None
            if cut is None:
                return None
            prompt_ids, num_cut = cut
        return ScoringPrompt(prompt_ids, tuple(permutation), num_cut)

    def whole(self, messages: Sequence[Message], responses: Sequence[str]) -> str:
        """The text of the prompt with `responses` uncut and in this order."""
        return self.text(self._question(messages), [self._neutralise(response) for response in responses])

    def text(self, question: str, texts: Sequence[str]) -> str:
        """The template filled with `texts` as they stand, the first as Response 1."""
        template = self._referee.template
        framed = [
            _substitute(template.response, {"index": str(number), "response": text})
            for number, text in enumerate(texts, start=1)
        ]
        return _substitute(template.prompt, {"question": question, "responses": "\n".join(framed)})

    def _encode(self, question: str, texts: Sequence[str]) -> tuple[int, ...]:
        return self._tokenizer.encode_chat([Message("user", self.text(question, texts))])

    def _question(self, messages: Sequence[Message]) -> str:
        """A lone user turn is the question; of a longer conversation every turn, each with its speaker."""
        turns = [(message.role, self._neutralise(message.content)) for message in messages]
        if len(turns) == 1:
            return turns[0][1]
        return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in turns)

    def _cut_to_fit(self, question: str, texts: Sequence[str]) -> tuple[tuple[int, ...], int] | None:
        """Token ids within the limit and how many responses were cut; None where even one token each is too much."""
        limit = self._referee.max_prompt_tokens
        lengths = [self._length(text) for text in texts]
        budget = limit - len(self._encode(question, [""] * len(texts)))
        while budget > 0:
            shares = fair_shares(lengths, budget)
            cut = [
                text if length <= share else self._shorten(text, share)
                for text, length, share in zip(texts, lengths, shares, strict=True)
            ]
            prompt_ids = self._encode(question, cut)
            if len(prompt_ids) <= limit:
                return prompt_ids, sum(before != after for before, after in zip(texts, cut, strict=True))
            # Tokens merge across borders, so lengths do not add up exactly: give up what is still too much.
            budget -= len(prompt_ids) - limit
        return None

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _shorten(self, text: str, share: int) -> str:
        """The longest beginning of `text` that has `share` tokens together with the mark.

        Cut between characters, not between tokens: half a character does not decode.
        """
        end = longest_prefix(len(text), lambda length: self._length(text[:length] + CUT_MARK) <= share)
        return text[:end] + CUT_MARK


def fair_shares(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens for each response, together at most `budget`.

    The short ones keep their length; the others share equally what is left.
    """
    shares = [0] * len(lengths)
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for done, i in enumerate(by_length):
        shares[i] = min(lengths[i], budget // (len(lengths) - done))
        budget -= shares[i]
    return shares


def longest_prefix(length: int, fits: Callable[[int], bool]) -> int:
    """The largest n <= length for which `fits(n)`, by bisection; 0 where none does."""
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _substitute(template: str, values: dict[str, str]) -> str:
    """Every `{name}` of `values` replaced in a single pass; other braces are plain text."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)
