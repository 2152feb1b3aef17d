"""All prompts of a step at once: one coroutine each, from the question to a group with rewards."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from megatron_urpo.config import Config
from megatron_urpo.protocols import ChatTokenizer, GenerationFailed, Generator
from megatron_urpo.rollout.concurrency import run_all, run_unless
from megatron_urpo.rollout.groups import collect_group
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.rollout.session import Session, Slot, Verifier
from megatron_urpo.types import Group, Prompt

ENGINE_FAILED = "engine_failed"


@dataclass(frozen=True, slots=True)
class Rollout:
    """Groups in the order of their prompts; `failures` says why some have no completions.

    `seconds`: wall-clock time with at least one request in flight, for `rollout` (completions that are rewarded),
    `judge` (scores of instruction groups) and `verify` (answers). They overlap, so they do not add up.
    """

    groups: tuple[Group, ...]
    seconds: dict[str, float]
    failures: tuple[str, ...] = ()

    def __add__(self, later: "Rollout") -> "Rollout":
        seconds = {work: self.seconds[work] + later.seconds[work] for work in self.seconds}
        return Rollout(self.groups + later.groups, seconds, self.failures + later.failures)


def collect(
    prompts: Sequence[Prompt],
    engine: Generator,
    tokenizer: ChatTokenizer,
    verifier: Verifier,
    config: Config,
    step: int,
    earlier: Sequence[Prompt] = (),
    version: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Rollout:
    """Plays, judges and scores `prompts` of `step` with the policy of `version`, by default that of the step.

    `earlier`: prompts of the same step that were collected before; one that comes again is sampled anew.
    Raises StalePolicyError for tokens of another version, and Abandoned when `stopping` says so; an error of any
    coroutine cancels the others and is raised.
    """
    session = Session(
        engine=engine,
        tokenizer=tokenizer,
        verifier=verifier,
        config=config,
        version=step if version is None else version,
        scope=step,
        num_completions=config.rollout.completions_per_prompt,
        temperature=config.rollout.temperature,
        scoring=ScoringPrompts(config.referee, tokenizer),
    )
    groups = asyncio.run(run_unless(stopping, gather_groups(session, prompts, collect_group, earlier)))
    return Rollout(groups, session.clock.seconds, tuple(session.failures))


async def gather_groups(
    session: Session,
    prompts: Sequence[Prompt],
    one: Callable[[Session, Prompt, Slot], Awaitable[Group]],
    earlier: Sequence[Prompt] = (),
) -> tuple[Group, ...]:
    """`one` for every prompt side by side; the groups in the order of `prompts`.

    A prompt that the engine gave up on is a dropped group.
    """

    async def run(prompt: Prompt, slot: Slot) -> Group:
        try:
            return await one(session, prompt, slot)
        except GenerationFailed as error:
            session.failures.append(str(error))
            return Group(prompt, (), (), (), (), (), dropped=ENGINE_FAILED)

    places = slots(prompts, earlier)
    return tuple(await run_all(run(prompt, slot) for prompt, slot in zip(prompts, places, strict=True)))


def slots(prompts: Sequence[Prompt], earlier: Sequence[Prompt] = ()) -> list[Slot]:
    """A prompt that occurs twice in a batch is sampled with different seeds."""
    seen = Counter(prompt.id for prompt in earlier)
    result = []
    for index, prompt in enumerate(prompts):
        result.append(Slot(index, seen[prompt.id]))
        seen[prompt.id] += 1
    return result
