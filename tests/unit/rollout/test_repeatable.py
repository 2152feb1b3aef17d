"""The real engine under real coroutines: the same step gives the same groups bit for bit, however long others take."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

from megatron_urpo.inference import connect
from megatron_urpo.reward.verifiable.outcome import Verified, verified
from megatron_urpo.rollout import Rollout, build_samples, collect
from megatron_urpo.types import InstructionPrompt, Message, PreferencePrompt, Prompt, ReasoningPrompt
from tests.support.models import make_model
from tests.support.rollout import CharacterTokenizer, make_config


class SmallTokenizer(CharacterTokenizer):
    """Characters folded into the test model's 127 tokens; what it decodes is noise, as are the model's answers."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(10 + i % 100 for i in super().encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i - 10 + 33) for i in token_ids if i >= 10)


class SlowVerifier:
    """Takes a random time, like processes do."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    async def verify(self, text: str, truth: ReasoningPrompt) -> Verified:
        await asyncio.sleep(self.rng.random() / 50)
        return verified("correct" if len(text) % 2 else "wrong")


def prompts() -> list[Prompt]:
    batch: list[Prompt] = []
    for i in range(4):
        messages = (Message("user", "why " * (i + 1)),)
        batch.append(ReasoningPrompt(f"r{i}", messages, ("4",)))
        batch.append(PreferencePrompt(f"p{i}", messages, ("a", "bb"), (1.0, 0.0)))
        batch.append(InstructionPrompt(f"i{i}", messages))
    return batch


def test_verification_time_changes_nothing(tmp_path: Path) -> None:
    model = make_model(tmp_path, "qwen2")
    config = make_config(
        model={"path": tmp_path},
        rollout={"max_new_tokens": 8, "embedded": {"max_batch_tokens": 700}},
        referee={
            "template": {"prompt": "{question}\n{responses}", "response": "{response} [{index}]"},
            "max_prompt_tokens": 120,
            "max_new_tokens": 8,
            "votes": 2,
        },
    )
    tokenizer = SmallTokenizer()
    engine = connect(config, tokenizer.stop_token_ids, tokenizer.vocab_size, print)
    engine.update_weights(model.state_dict().items(), version=3)

    def run(seed: int) -> Rollout:
        return collect(prompts(), engine, tokenizer, SlowVerifier(seed), config, step=3)

    first = run(0)
    assert run(1).groups == first.groups
    assert [group.prompt.id for group in first.groups] == [prompt.id for prompt in prompts()]
    instruction = [group for group in first.groups if group.prompt.task == "instruction"]
    # Noise is no verdict: both votes were asked twice.
    assert [len(group.judgements) for group in instruction] == [4] * 4
    batch = build_samples(first.groups)
    assert {sample.task for sample in batch.samples} <= {"reasoning"}
    assert first.seconds["verify"] > 0
    engine.close()
