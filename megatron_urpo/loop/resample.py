"""All groups of a step: one round of prompts, and as many more as are allowed in place of groups without signal."""

from collections.abc import Callable, Sequence

from megatron_urpo.config.schema import RolloutConfig
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.rollout.samples import tasks_without_signal
from megatron_urpo.types import Prompt

Collect = Callable[[Sequence[Prompt], int, Sequence[Prompt]], Rollout]
"""(prompts, step, prompts of the step that were collected before) -> their groups."""


def collect_step(config: RolloutConfig, prompts: PromptStream, collect: Collect, step: int) -> Rollout:
    """The groups of `step`, those without signal included.

    Where all completions of a group earned the same there is nothing to learn. With `resample_rounds` above 0 the next
    prompt of the same task takes its place, so that a step trains on about as many groups, in the asked mixture, late
    in training as early. Source: DAPO's dynamic sampling, here with a bound. Every rank draws the same prompts.
    """
    asked = prompts.next_batch(step)
    rollout = newest = collect(asked, step, ())
    for _ in range(config.resample_rounds):
        lacking = tasks_without_signal(newest.groups)
        if not lacking:
            break
        replacements = prompts.replacements(lacking)
        newest = collect(replacements, step, asked)
        rollout = rollout + newest
        asked = asked + replacements
    return rollout
