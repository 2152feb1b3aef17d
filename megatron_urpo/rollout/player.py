"""The player: completions of a question."""

from dataclasses import dataclass

from megatron_urpo.rollout.session import ORDER_PLAY, Session, Slot
from megatron_urpo.types import Completion, GenerationRequest, InstructionPrompt, ReasoningPrompt

PROMPT_TOO_LONG = "prompt_too_long"


@dataclass(frozen=True, slots=True)
class Play:
    """A question as tokens and the completions of it; no completions where the question was too long."""

    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    dropped: str | None = None


async def play(session: Session, prompt: ReasoningPrompt | InstructionPrompt, slot: Slot) -> Play:
    """`session.num_completions` completions of the chat-formatted question."""
    prompt_ids = session.tokenizer.encode_chat(prompt.messages)
    rollout = session.config.rollout
    if len(prompt_ids) > rollout.max_prompt_tokens:
        return Play(prompt_ids, (), (), PROMPT_TOO_LONG)
    request = GenerationRequest(
        prompt_ids=prompt_ids,
        num_completions=session.num_completions,
        max_new_tokens=rollout.max_new_tokens,
        temperature=session.temperature,
        seed=session.seed(prompt, slot, "player"),
        order=(ORDER_PLAY, slot.index),
        group=slot.index,
    )
    completions = await session.generate(request, "rollout")
    return Play(prompt_ids, completions, session.texts(completions))
