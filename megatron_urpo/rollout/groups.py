"""One prompt's life: from the question to a group of completions with rewards, by task."""

from megatron_urpo.reward.preference import preference_reward
from megatron_urpo.reward.self_scored import self_scored_rewards
from megatron_urpo.reward.verifiable.outcome import Verified
from megatron_urpo.rollout.concurrency import run_all
from megatron_urpo.rollout.player import Play, play
from megatron_urpo.rollout.referee import SCORING_PROMPT_TOO_LONG, Judging, judge, read, render
from megatron_urpo.rollout.session import ORDER_PREFERENCE, Session, Slot
from megatron_urpo.types import (
    GenerationRequest,
    Group,
    InstructionPrompt,
    Judgement,
    PreferencePrompt,
    Prompt,
    ReasoningPrompt,
)


async def collect_group(session: Session, prompt: Prompt, slot: Slot) -> Group:
    """The group of one prompt, whatever its task."""
    if isinstance(prompt, ReasoningPrompt):
        return await reasoning_group(session, prompt, slot)
    if isinstance(prompt, PreferencePrompt):
        return await preference_group(session, prompt, slot)
    return await instruction_group(session, prompt, slot)


async def reasoning_group(session: Session, prompt: ReasoningPrompt, slot: Slot) -> Group:
    """Each completion is verified by itself; one that the verifier failed on is masked."""
    played = await play(session, prompt, slot)

    async def verify(text: str) -> Verified:
        with session.clock.measure("verify"):
            return await session.verifier.verify(text, prompt)

    results = await run_all(verify(text) for text in played.texts)
    return Group(
        prompt=prompt,
        prompt_ids=played.prompt_ids,
        completions=played.completions,
        texts=played.texts,
        rewards=tuple(result.reward for result in results),
        outcomes=tuple(result.outcome for result in results),
        causes=tuple(result.cause for result in results) if prompt.tests is not None else (),
        dropped=played.dropped,
    )


async def preference_group(session: Session, prompt: PreferencePrompt, slot: Slot) -> Group:
    """Every completion is a verdict over the same scoring prompt, rewarded by its agreement with the gold ranking."""
    scoring = render(session, prompt, prompt.responses, slot)
    if scoring is None:
        return Group(prompt, (), (), (), (), (), dropped=SCORING_PROMPT_TOO_LONG)
    request = GenerationRequest(
        prompt_ids=scoring.prompt_ids,
        num_completions=session.num_completions,
        max_new_tokens=session.config.referee.max_new_tokens,
        temperature=session.temperature,
        seed=session.seed(prompt, slot, "referee"),
        order=(ORDER_PREFERENCE, slot.index),
        group=slot.index,
    )
    completions = await session.generate(request, "rollout")
    judgements = tuple(read(session, scoring, completion) for completion in completions)
    return Group(
        prompt=prompt,
        prompt_ids=scoring.prompt_ids,
        completions=completions,
        texts=tuple(judgement.text for judgement in judgements),
        rewards=tuple(preference_reward(judgement.verdict, prompt.gold) for judgement in judgements),
        outcomes=tuple(judgement.verdict.outcome for judgement in judgements),
        judgements=judgements,
    )


async def instruction_group(session: Session, prompt: InstructionPrompt, slot: Slot) -> Group:
    """The same policy scores the whole group at once; where it cannot be read the whole group is masked."""
    played = await play(session, prompt, slot)
    if played.dropped is not None:
        return unscored_group(prompt, played)
    judging = await judge(session, prompt, played.texts, slot)
    rewards = self_scored_rewards(judging.votes)
    if rewards is None:
        return _masked_group(prompt, played, judging)
    return Group(
        prompt=prompt,
        prompt_ids=played.prompt_ids,
        completions=played.completions,
        texts=played.texts,
        rewards=rewards,
        outcomes=("scored",) * len(rewards),
        judgements=judging.judgements,
    )


def unscored_group(prompt: InstructionPrompt, played: Play) -> Group:
    """Completions without rewards: the question was too long, or nobody asked for scores."""
    return _without_rewards(prompt, played, "unscored", played.dropped)


def _masked_group(prompt: InstructionPrompt, played: Play, judging: Judging) -> Group:
    """The cause is that of the first vote's last ask, or that no scoring prompt fits."""
    cause = f"verdict_{judging.votes[0].outcome}" if judging.votes else SCORING_PROMPT_TOO_LONG
    return _without_rewards(prompt, played, f"masked_{cause}", cause, judging.judgements)


def _without_rewards(
    prompt: InstructionPrompt,
    played: Play,
    outcome: str,
    dropped: str | None,
    judgements: tuple[Judgement, ...] = (),
) -> Group:
    count = len(played.completions)
    return Group(
        prompt=prompt,
        prompt_ids=played.prompt_ids,
        completions=played.completions,
        texts=played.texts,
        rewards=(None,) * count,
        outcomes=(outcome,) * count,
        judgements=judgements,
        dropped=dropped,
    )
