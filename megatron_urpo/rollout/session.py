"""What every coroutine of one collection shares, and the one door to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from megatron_urpo.config import Config
from megatron_urpo.protocols import ChatTokenizer, Generator
from megatron_urpo.reward.verifiable.outcome import Verified
from megatron_urpo.rollout.clock import Clock
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.rollout.seeds import derive_seed
from megatron_urpo.types import Completion, GenerationRequest, Prompt, ReasoningPrompt

Work = Literal["rollout", "judge", "verify"]
WORKS: tuple[Work, ...] = ("rollout", "judge", "verify")

# Judging goes first when both wait: its group has been played and its result is due. Scoring prompts of preference
# data come last because they are long, like judging, and share a batch with it.
ORDER_JUDGE, ORDER_PLAY, ORDER_PREFERENCE = 0, 1, 2


class StalePolicyError(RuntimeError):
    """Tokens came from another version of the policy than the step that asked for them."""


class Verifier(Protocol):
    """Holds a completion against the truth of its prompt."""

    async def verify(self, text: str, truth: ReasoningPrompt, /) -> Verified: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """A prompt's place in its batch: `index` orders its requests, `repeat` counts earlier slots of the same prompt."""

    index: int
    repeat: int = 0


@dataclass(frozen=True)
class Session:
    """One collection over one version of the policy.

    `scope` is the part of every seed that tells this collection from others: the step in training, a constant in
    evaluation. `num_completions` and `temperature` are those of completions that are rewarded (players, and referees
    on preference prompts); judging an instruction group follows `config.referee`.
    """

    engine: Generator
    tokenizer: ChatTokenizer
    verifier: Verifier
    config: Config
    version: int
    scope: int | str
    num_completions: int
    temperature: float
    scoring: ScoringPrompts
    clock: Clock = field(default_factory=lambda: Clock(WORKS))
    failures: list[str] = field(default_factory=list)
    """Why the engine gave up on requests."""

    def seed(self, prompt: Prompt, slot: Slot, role: str, attempt: int = 0) -> int:
        return derive_seed(self.config.seed, self.scope, prompt.id, slot.repeat, role, attempt)

    async def generate(self, request: GenerationRequest, work: Work) -> tuple[Completion, ...]:
        """Completions of `request`, all by this session's version. Raises StalePolicyError for any other."""
        with self.clock.measure(work):
            completions = await self.engine.generate(request)
        for completion in completions:
            for span in completion.spans:
                if span.version != self.version:
                    raise StalePolicyError(
                        f"tokens {span.start} to {span.end} of a completion come from policy version {span.version},"
                        f" this step needs version {self.version}; push the weights before collecting"
                    )
        return completions

    def texts(self, completions: Sequence[Completion]) -> tuple[str, ...]:
        return tuple(self.tokenizer.decode(completion.token_ids) for completion in completions)
