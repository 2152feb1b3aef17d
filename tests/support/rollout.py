"""Scripted stand-ins behind the protocols that the rollout meets: a tokenizer, an engine, a verifier."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_urpo.config import Config
from megatron_urpo.reward.verifiable.outcome import Outcome, Verified, verified
from megatron_urpo.types import Completion, FinishReason, GenerationRequest, Message, ReasoningPrompt, VersionSpan

START, STOP, FIRST_CHARACTER = 1, 2, 10


class CharacterTokenizer:
    """One token a character, ChatML around turns; the texts of control tokens encode to control tokens."""

    vocab_size = 0x110000 + FIRST_CHARACTER
    stop_token_ids = (STOP,)
    special_tokens = ("<|im_start|>", "<|im_end|>")

    def encode(self, text: str) -> tuple[int, ...]:
        pieces = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text)
        ids: list[int] = []
        for piece in pieces:
            if piece in self.special_tokens:
                ids.append(START + self.special_tokens.index(piece))
            else:
                ids += [ord(character) + FIRST_CHARACTER for character in piece]
        return tuple(ids)

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        turns = [f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages]
        return self.encode("".join(turns) + "<|im_start|>assistant\n")

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i - FIRST_CHARACTER) for i in token_ids if i >= FIRST_CHARACTER)


@dataclass(frozen=True)
class Reply:
    """What the script answers: `finish_reason` `stop` adds the stop token."""

    text: str
    finish_reason: FinishReason = "stop"


class ScriptedGenerator:
    """`protocols.Generator` that answers by a function of the prompt's text, the request and the completion's index."""

    def __init__(self, script: Callable[[str, GenerationRequest, int], Reply | str], version: int = 0) -> None:
        self.version = version
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.tokenizer = CharacterTokenizer()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        await asyncio.sleep(0)
        prompt = self.tokenizer.decode(request.prompt_ids)
        return tuple(self._completion(self.script(prompt, request, i)) for i in range(request.num_completions))

    def _completion(self, reply: Reply | str) -> Completion:
        reply = Reply(reply) if isinstance(reply, str) else reply
        ids = self.tokenizer.encode(reply.text) + ((STOP,) if reply.finish_reason == "stop" else ())
        return Completion(ids, (-0.5,) * len(ids), reply.finish_reason, (VersionSpan(self.version, 0, len(ids)),))


class ScriptedVerifier:
    """Answers by the completion's text; a text without an entry is `wrong`."""

    def __init__(self, outcomes: dict[str, Outcome] | None = None) -> None:
        self.outcomes = outcomes or {}

    async def verify(self, text: str, truth: ReasoningPrompt) -> Verified:
        await asyncio.sleep(0)
        return verified(self.outcomes.get(text, "correct" if text in truth.answers else "wrong"))


def make_config(**sections: dict[str, Any]) -> Config:
    """A small config; a section's values are merged over these."""
    base: dict[str, dict[str, Any]] = {
        "model": {"path": "model"},
        "data": {"train": ["train.jsonl"]},
        "rollout": {"completions_per_prompt": 2, "max_new_tokens": 16, "max_prompt_tokens": 200},
        "referee": {"max_new_tokens": 16, "max_prompt_tokens": 2000},
        "evaluation": {"completions_per_prompt": 2},
    }
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}}
    return Config.model_validate({"run_dir": Path("run"), **merged})
