"""The verifier of reasoning prompts: answers to `pool.py`, programs to `code/`."""

from collections.abc import Sequence
from typing import Protocol

from megatron_urpo.config.reward import VerifierConfig
from megatron_urpo.reward.verifiable.answers import AnswerPattern
from megatron_urpo.reward.verifiable.code.pool import CodeVerifier
from megatron_urpo.reward.verifiable.outcome import Verified, verified
from megatron_urpo.reward.verifiable.pool import MathVerifier
from megatron_urpo.types import CodeTests


class Truth(Protocol):
    """What a completion is held against: accepted answers, or tests. A ReasoningPrompt is one."""

    @property
    def answers(self) -> Sequence[str]: ...
    @property
    def tests(self) -> CodeTests | None: ...


class RuleVerifier:
    """Starts its processes when the first completion needs them; `close` ends them."""

    def __init__(self, config: VerifierConfig) -> None:
        pattern = AnswerPattern(config.answer_pattern) if config.answer_pattern else None
        self.math = MathVerifier(config.workers, config.timeout_seconds, config.memory_mib, pattern)
        self.code = CodeVerifier(config.code)

    async def verify(self, text: str, truth: Truth) -> Verified:
        """What the completion `text` earns. Raises RuntimeError where no process can be started at all."""
        if truth.tests is None:
            return verified(await self.math.verify(text, truth.answers))
        return await self.code.verify(text, truth.tests)

    def close(self) -> None:
        self.math.close()
        self.code.close()
