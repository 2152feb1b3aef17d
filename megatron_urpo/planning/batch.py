"""The arithmetic of a step in words: prompts, completions, tokens, micro-batches, optimizer steps.

Upper bounds: every completion as long as it may be. What a run really writes is shorter, and its report says how much.
"""

from dataclasses import dataclass

from megatron_urpo.config import Config
from megatron_urpo.config.data import Phase


@dataclass(frozen=True)
class PhasePlan:
    """One step of a curriculum's phase. `prompts` by task, rounded to whole ones as the mixture deals them out."""

    until: int | None
    prompts: dict[str, float]
    completions: int
    verdicts: int
    most_tokens: int
    micro_batches: int
    """Of one data-parallel rank in one pass."""
    updates: int

    def words(self, config: Config, data: int) -> str:
        mix = " + ".join(f"{count:g} {task}" for task, count in self.prompts.items())
        group, loss = config.rollout.completions_per_prompt, config.loss
        end = f"until step {self.until}" if self.until else "to the end"
        return (
            f"{end}: {config.data.prompts_per_step} prompts ({mix}) x {group} = {self.completions:,} completions"
            f"{f' and {self.verdicts:,} verdicts over groups' if self.verdicts else ''}; at most"
            f" {self.most_tokens:,} tokens to learn from = {self.micro_batches:,} micro-batches of"
            f" {loss.max_tokens_per_micro_batch:,} on each of {data} data-parallel ranks; {loss.epochs} epochs x"
            f" {loss.minibatches} mini-batches = {self.updates} optimizer steps"
        )


@dataclass(frozen=True)
class ScoringPrompt:
    """The referee's longest prompt: a question and G whole responses, without the template's own words."""

    longest: int
    limit: int
    context: int
    share: int
    """Tokens that each response keeps where they do not fit."""

    def words(self, config: Config) -> str:
        group, limits = config.rollout.completions_per_prompt, config.rollout
        sum_ = f"{limits.max_prompt_tokens:,} + {group} x {limits.max_new_tokens:,} = {self.longest:,} tokens"
        if self.longest <= self.limit:
            limit = f"referee.max_prompt_tokens {self.limit:,} holds it"
            return f"a question and {group} responses have at most {sum_}; {limit}"
        what = f"each is cut to {self.share:,} or more" if config.referee.overflow == "truncate" else "it is skipped"
        return (
            f"a question and {group} responses may have {sum_}, above referee.max_prompt_tokens {self.limit:,} (the"
            f" context is {self.context:,}): where they do, {what}"
        )


def plan_phases(config: Config, data: int) -> list[PhasePlan]:
    return [_plan_phase(config, phase, data) for phase in config.data.curriculum]


def _plan_phase(config: Config, phase: Phase, data: int) -> PhasePlan:
    total, weight = config.data.prompts_per_step, sum(phase.mix.values())
    prompts = {str(task): round(total * share / weight, 1) for task, share in phase.mix.items() if share}
    group, loss = config.rollout.completions_per_prompt, config.loss
    played = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    judged = config.referee.max_prompt_tokens + config.referee.max_new_tokens
    tokens = sum(count * group * (judged if task == "preference" else played) for task, count in prompts.items())
    minibatch = -(-int(tokens) // loss.minibatches)
    per_rank = -(-minibatch // (loss.max_tokens_per_micro_batch * data))
    return PhasePlan(
        until=phase.until,
        prompts=prompts,
        completions=total * group,
        verdicts=int(prompts.get("instruction", 0) * config.referee.votes),
        most_tokens=int(tokens),
        micro_batches=per_rank * loss.minibatches,
        updates=loss.epochs * loss.minibatches,
    )


def plan_scoring_prompt(config: Config, context: int) -> ScoringPrompt:
    group, question = config.rollout.completions_per_prompt, config.rollout.max_prompt_tokens
    limit = config.referee.max_prompt_tokens
    return ScoringPrompt(
        longest=question + group * config.rollout.max_new_tokens,
        limit=limit,
        context=context,
        share=max(0, (limit - question) // group),
    )
