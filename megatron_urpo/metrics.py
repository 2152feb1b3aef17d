"""Named metrics of a step's groups: `area/name[/task]`.

The names that a config can produce are always there, so that a table or a plot has no holes, with two exceptions: a
mean over nothing has no value, so it is left out; and a task that the curriculum never mixes has no names.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev

from megatron_urpo.config import Config
from megatron_urpo.reward.self_scored import vote_agreement
from megatron_urpo.reward.verifiable.outcome import CODE_CAUSES
from megatron_urpo.types import TASKS, VERDICT_OUTCOMES, Group, Judgement, PreferencePrompt, Task, Verdict

REASONING_OUTCOMES = ("correct", "wrong", "no_answer", "verifier_error")
DROP_CAUSES = (
    "no_signal",
    "prompt_too_long",
    "scoring_prompt_too_long",
    "engine_failed",
    *(f"verdict_{outcome}" for outcome in VERDICT_OUTCOMES if outcome != "ok"),
)


def rollout_metrics(groups: Sequence[Group], num_dropped: Mapping[str, int], config: Config) -> dict[str, float]:
    """Metrics of one step. `num_dropped` counts the groups that are not trained on, by cause."""
    metrics: dict[str, float] = {}
    for task in tasks_of(config):
        members = [group for group in groups if group.prompt.task == task]
        metrics |= _rewards(task, members) | _completions(task, members)
        if task == "reasoning":
            metrics |= _reasoning(members)
    metrics |= referee_metrics(groups, config.referee.votes)
    metrics |= {f"groups/dropped/{cause}": float(num_dropped.get(cause, 0)) for cause in DROP_CAUSES}
    metrics |= {f"groups/dropped/{cause}": float(n) for cause, n in num_dropped.items() if cause not in DROP_CAUSES}
    metrics["groups/total"] = float(len(groups))
    metrics["groups/resampled"] = float(len(groups) - config.data.prompts_per_step)
    metrics["completions/empty"] = float(sum(not text.strip() for group in groups for text in group.texts))
    metrics["tokens/generated"] = float(sum(_generated(group) for group in groups))
    return metrics


def tasks_of(config: Config) -> list[Task]:
    """Tasks that some phase of the curriculum mixes, in their usual order."""
    mixed = {task for phase in config.data.curriculum for task, weight in phase.mix.items() if weight > 0}
    return [task for task in TASKS if task in mixed]


def referee_metrics(groups: Iterable[Group], votes: int) -> dict[str, float]:
    """How the referee did, on preference and instruction groups alike; every ask counts, re-asks included.

    - `referee/position_bias`: mean over readable verdicts of the Pearson correlation between a response's score and
      its position in the scoring prompt. Positions are random, so an unbiased referee is at 0; +1 favours the last.
    - `referee/length_correlation`: the same with the response's number of characters; not a bias by itself, since
      longer may be better, but its growth is a warning.
    - `referee/vote_agreement`: mean Kendall's tau between the votes on a group (`votes` > 1).
    A verdict whose scores, or responses whose lengths, are all equal has no correlation and is left out.
    """
    judged = [group for group in groups if group.judgements]
    asks = [(group, judgement) for group in judged for judgement in group.judgements]
    counts = Counter(judgement.verdict.outcome for _, judgement in asks)
    metrics = {f"referee/verdict/{outcome}": float(counts[outcome]) for outcome in VERDICT_OUTCOMES}
    readable = [(group, judgement) for group, judgement in asks if judgement.verdict.outcome == "ok"]
    metrics |= _mean("referee/verdict_ok_fraction", [float(j.verdict.outcome == "ok") for _, j in asks])
    metrics |= _mean("referee/position_bias", [_position_bias(judgement) for _, judgement in readable])
    metrics |= _mean("referee/length_correlation", [_length_correlation(*pair) for pair in readable])
    instruction = [group for group in judged if group.prompt.task == "instruction"]
    final = [final_verdicts(group.judgements) for group in instruction]
    metrics["referee/reasks"] = float(
        sum(len(group.judgements) - len(verdicts) for group, verdicts in zip(instruction, final, strict=True))
    )
    metrics["referee/responses_cut"] = float(sum(judgement.scoring.num_cut for _, judgement in asks))
    if votes > 1:
        metrics |= _mean("referee/vote_agreement", [vote_agreement(verdicts) for verdicts in final])
    return metrics


def final_verdicts(judgements: Sequence[Judgement]) -> list[Verdict]:
    """The last verdict of each vote on an instruction group.

    The asks stand vote by vote: one that could be read ends its vote, and so does the re-ask after one that could not.
    """
    verdicts: list[Verdict] = []
    is_reask = False
    for judgement in judgements:
        if is_reask or judgement.verdict.outcome == "ok":
            verdicts.append(judgement.verdict)
            is_reask = False
        else:
            is_reask = True
    return verdicts


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation; None where either side is constant."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    mean_x, mean_y = fmean(xs), fmean(ys)
    dx, dy = [x - mean_x for x in xs], [y - mean_y for y in ys]
    covariance = math.fsum(a * b for a, b in zip(dx, dy, strict=True))
    return covariance / math.sqrt(math.fsum(a * a for a in dx) * math.fsum(b * b for b in dy))


def _position_bias(judgement: Judgement) -> float | None:
    by_position = [judgement.verdict.scores[candidate] for candidate in judgement.scoring.permutation]
    return correlation(range(len(by_position)), by_position)


def _length_correlation(group: Group, judgement: Judgement) -> float | None:
    prompt = group.prompt
    responses = prompt.responses if isinstance(prompt, PreferencePrompt) else group.texts
    return correlation([len(response) for response in responses], judgement.verdict.scores)


def _rewards(task: Task, groups: Sequence[Group]) -> dict[str, float]:
    """Mean over all rewarded completions, and the mean of the groups' standard deviations: what advantages see."""
    rewards = [[reward for reward in group.rewards if reward is not None] for group in groups]
    return _mean(f"reward/mean/{task}", [reward for members in rewards for reward in members]) | _mean(
        f"reward/std/{task}", [pstdev(members) for members in rewards if members]
    )


def _completions(task: Task, groups: Sequence[Group]) -> dict[str, float]:
    completions = [completion for group in groups for completion in group.completions]
    return _mean(f"completions/length_mean/{task}", [len(c.token_ids) for c in completions]) | _mean(
        f"completions/truncated_fraction/{task}", [float(c.finish_reason == "length") for c in completions]
    )


def _reasoning(groups: Sequence[Group]) -> dict[str, float]:
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    metrics: dict[str, float] = {}
    for name in REASONING_OUTCOMES:
        metrics |= _mean(f"reasoning/{name}_fraction", [float(outcome == name) for outcome in outcomes])
    programs = [pair for group in groups if group.causes for pair in zip(group.outcomes, group.causes, strict=True)]
    metrics |= _mean("reasoning/code/passed_fraction", [float(outcome == "correct") for outcome, _ in programs])
    for name in CODE_CAUSES:
        metrics |= _mean(f"reasoning/code/{name}_fraction", [float(cause == name) for _, cause in programs])
    return metrics


def _generated(group: Group) -> int:
    """Tokens that the engine sampled for a group: completions, and the judging of instruction groups."""
    tokens = sum(len(completion.token_ids) for completion in group.completions)
    if group.prompt.task == "instruction":
        tokens += sum(len(judgement.completion.token_ids) for judgement in group.judgements)
    return tokens


def _mean(name: str, values: Sequence[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    return {name: fmean(known)} if known else {}
