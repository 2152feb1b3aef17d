"""The referee: asked to score a group of responses, once more where it cannot be read, as often as votes are due."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_urpo.rollout.concurrency import run_all
from megatron_urpo.rollout.session import ORDER_JUDGE, Session, Slot
from megatron_urpo.rollout.verdict import read_verdict
from megatron_urpo.types import Completion, GenerationRequest, Judgement, Prompt, ScoringPrompt, Verdict

SCORING_PROMPT_TOO_LONG = "scoring_prompt_too_long"
ASKS_PER_VOTE = 2  # the first ask and one re-ask
REASK_TEMPERATURE = 1.0  # a greedy re-ask would repeat what could not be read


@dataclass(frozen=True, slots=True)
class Judging:
    """Every ask for one group, vote by vote, and each vote's final verdict; no votes where no prompt fits."""

    judgements: tuple[Judgement, ...]
    votes: tuple[Verdict, ...]


async def judge(session: Session, prompt: Prompt, responses: Sequence[str], slot: Slot) -> Judging:
    """`config.referee.votes` votes on `responses`, each over a permutation of its own."""
    num_votes = session.config.referee.votes
    votes = await run_all(_vote(session, prompt, responses, slot, vote) for vote in range(num_votes))
    if not all(votes):
        return Judging((), ())
    return Judging(
        judgements=tuple(judgement for asks in votes for judgement in asks),
        votes=tuple(asks[-1].verdict for asks in votes),
    )


async def _vote(
    session: Session, prompt: Prompt, responses: Sequence[str], slot: Slot, vote: int
) -> tuple[Judgement, ...]:
    """The asks of one vote; only the last of them can be `ok`. Empty where the scoring prompt does not fit."""
    asks: list[Judgement] = []
    for number in range(ASKS_PER_VOTE):
        attempt = vote * ASKS_PER_VOTE + number
        scoring = render(session, prompt, responses, slot, attempt)
        if scoring is None:
            return ()
        asks.append(await _ask(session, prompt, scoring, slot, attempt))
        if asks[-1].verdict.outcome == "ok":
            break
    return tuple(asks)


async def _ask(session: Session, prompt: Prompt, scoring: ScoringPrompt, slot: Slot, attempt: int) -> Judgement:
    referee = session.config.referee
    is_reask = attempt % ASKS_PER_VOTE > 0
    request = GenerationRequest(
        prompt_ids=scoring.prompt_ids,
        num_completions=1,
        max_new_tokens=referee.max_new_tokens,
        temperature=REASK_TEMPERATURE if is_reask else referee.temperature,
        seed=session.seed(prompt, slot, "referee", attempt),
        order=(ORDER_JUDGE, slot.index, attempt),
        group=slot.index,
    )
    (completion,) = await session.generate(request, "judge")
    return read(session, scoring, completion)


def render(
    session: Session, prompt: Prompt, responses: Sequence[str], slot: Slot, attempt: int = 0
) -> ScoringPrompt | None:
    """The scoring prompt of one attempt, its permutation drawn for it alone; None where it does not fit."""
    seed = session.seed(prompt, slot, "permutation", attempt)
    return session.scoring.render(prompt.messages, responses, seed)


def read(session: Session, scoring: ScoringPrompt, completion: Completion) -> Judgement:
    """What the referee wrote and what can be read from it."""
    (text,) = session.texts([completion])
    score_range = session.config.referee.score_range
    verdict = read_verdict(text, completion.finish_reason, scoring.permutation, score_range)
    return Judgement(scoring, completion, text, verdict)
