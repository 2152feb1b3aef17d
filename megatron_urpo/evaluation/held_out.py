"""Held-out evaluation of one version of the policy, through the same coroutines as training.

Sampling depends on `config.seed` and the prompt alone, never on the step: two evaluations differ by their policies
and by nothing else. Nothing here touches the state of training.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from megatron_urpo.config import Config
from megatron_urpo.evaluation.quality import Answer, rate_answers
from megatron_urpo.protocols import ChatTokenizer, Generator
from megatron_urpo.reward.preference import kendall_tau
from megatron_urpo.rollout.collect import gather_groups
from megatron_urpo.rollout.concurrency import run_all
from megatron_urpo.rollout.groups import collect_group, instruction_group, unscored_group
from megatron_urpo.rollout.player import play
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.rollout.session import Session, Slot, Verifier
from megatron_urpo.types import Group, InstructionPrompt, PreferencePrompt, Prompt

SCOPE = "evaluation"


def evaluate(
    engine: Generator,
    tokenizer: ChatTokenizer,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    config: Config,
) -> dict[str, float]:
    """Metrics of the engine's policy on held-out `prompts`; a task without prompts has no keys.

    - `eval/reasoning/accuracy`: share of right answers; completions on which the verifier failed are left out.
    - `eval/preference/tau`: mean Kendall's tau with the gold ranking; a verdict that cannot be read counts 0.
    - `eval/preference/verdict_ok_fraction`: share of verdicts that can be read.
    - `eval/instruction/self_score`: mean score that the policy gives its own answers, over groups with a verdict.
    - `eval/instruction/verdict_ok_fraction`: share of groups that got a verdict, re-ask included.
    - `eval/instruction/quality`: mean rating by `config.evaluation.scorer`, where one is set.
    - `eval/instruction/self_score_tau`: mean over groups of Kendall's tau between self-scores and quality; groups
      without a verdict, or whose quality is constant, are left out.
    - `eval/<task>/greedy_accuracy|greedy_tau|greedy_quality`: one completion at temperature 0
      (`config.evaluation.greedy`).
    - `eval/dropped_prompts`: prompts that did not fit the length limits, in none of the means above.

    Reasoning and preference prompts get `evaluation.completions_per_prompt` completions, instruction prompts a whole
    group of `rollout.completions_per_prompt`, all at `evaluation.temperature`. Raises QualityError when the scorer
    fails, StalePolicyError when weights change under way.
    """
    sampled, greedy = asyncio.run(_collect(engine, tokenizer, verifier, prompts, config))
    metrics = {"eval/dropped_prompts": float(sum(not group.completions for group in sampled))}
    metrics |= _accuracy(sampled, "accuracy") | _accuracy(greedy, "greedy_accuracy")
    metrics |= _tau(sampled, "tau") | _tau(greedy, "greedy_tau")
    metrics |= _mean("eval/preference/verdict_ok_fraction", [o == "ok" for o in _outcomes(sampled, "preference")])
    return metrics | _instruction(sampled, greedy, config)


async def _collect(
    engine: Generator, tokenizer: ChatTokenizer, verifier: Verifier, prompts: Sequence[Prompt], config: Config
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Sampled groups, and greedy ones (none where they are off)."""
    session = Session(
        engine=engine,
        tokenizer=tokenizer,
        verifier=verifier,
        config=config,
        version=engine.version,
        scope=SCOPE,
        num_completions=config.evaluation.completions_per_prompt,
        temperature=config.evaluation.temperature,
        scoring=ScoringPrompts(config.referee, tokenizer),
    )
    if not config.evaluation.greedy:
        return await gather_groups(session, prompts, _sampled_group), ()
    greedy_session = replace(session, num_completions=1, temperature=0.0)
    # Side by side, so that both share the engine's batches.
    sampled, greedy = await run_all(
        [gather_groups(session, prompts, _sampled_group), gather_groups(greedy_session, prompts, _greedy_group)]
    )
    return sampled, greedy


async def _sampled_group(session: Session, prompt: Prompt, slot: Slot) -> Group:
    if isinstance(prompt, InstructionPrompt):
        # Self-scores are read as in training: over a whole group.
        whole = replace(session, num_completions=session.config.rollout.completions_per_prompt)
        return await instruction_group(whole, prompt, slot)
    return await collect_group(session, prompt, slot)


async def _greedy_group(session: Session, prompt: Prompt, slot: Slot) -> Group:
    if isinstance(prompt, InstructionPrompt):
        return unscored_group(prompt, await play(session, prompt, slot))  # a lone answer has nothing to be ranked with
    return await collect_group(session, prompt, slot)


def _outcomes(groups: Sequence[Group], task: str) -> list[str]:
    return [outcome for group in groups if group.prompt.task == task for outcome in group.outcomes]


def _accuracy(groups: Sequence[Group], name: str) -> dict[str, float]:
    outcomes = [outcome for outcome in _outcomes(groups, "reasoning") if outcome != "verifier_error"]
    return _mean(f"eval/reasoning/{name}", [outcome == "correct" for outcome in outcomes])


def _tau(groups: Sequence[Group], name: str) -> dict[str, float]:
    return _mean(
        f"eval/preference/{name}",
        [
            kendall_tau(judgement.verdict.scores, group.prompt.gold) if judgement.verdict.outcome == "ok" else 0.0
            for group in groups
            if isinstance(group.prompt, PreferencePrompt)
            for judgement in group.judgements
        ],
    )


def _instruction(sampled: Sequence[Group], greedy: Sequence[Group], config: Config) -> dict[str, float]:
    groups = [group for group in sampled if group.prompt.task == "instruction" and group.completions]
    greedy = [group for group in greedy if group.prompt.task == "instruction" and group.completions]
    rewards = [[reward for reward in group.rewards if reward is not None] for group in groups]
    metrics = _mean("eval/instruction/self_score", [reward for scores in rewards for reward in scores])
    metrics |= _mean("eval/instruction/verdict_ok_fraction", [bool(scores) for scores in rewards])
    if not config.evaluation.scorer or not groups:
        return metrics
    answers = [Answer(group.prompt.messages, text) for group in (*groups, *greedy) for text in group.texts]
    ratings = iter(rate_answers(config.evaluation.scorer, answers))
    quality = [[next(ratings) for _ in group.texts] for group in groups]
    metrics |= _mean("eval/instruction/quality", [value for values in quality for value in values])
    metrics |= _mean("eval/instruction/greedy_quality", [next(ratings) for group in greedy for _ in group.texts])
    return metrics | _mean(
        "eval/instruction/self_score_tau",
        [
            kendall_tau(scores, values)
            for scores, values in zip(rewards, quality, strict=True)
            if scores and len(set(values)) > 1
        ],
    )


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: fmean(values)} if values else {}
