"""From groups with rewards to what the trainer sees: advantages, and who is left out and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_urpo.algorithm.advantages import group_advantages
from megatron_urpo.types import Group, Sample, Task

NO_SIGNAL = "no_signal"


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """The samples of a step.

    `causes[g]` is why group g is not trained on, None where it is. `advantages[g][i]` is None where completion i of
    group g is not trained on. `num_masked` counts, in groups that are trained on, completions without a reward by
    their outcome.
    """

    samples: tuple[Sample, ...]
    causes: tuple[str | None, ...]
    advantages: tuple[tuple[float | None, ...], ...]
    num_masked: dict[str, int]

    @property
    def num_dropped(self) -> dict[str, int]:
        """Groups that are not trained on, by cause."""
        return dict(Counter(cause for cause in self.causes if cause is not None))


def build_samples(groups: Sequence[Group]) -> SampleBatch:
    """Samples of every group that has a signal, in the order of groups and completions.

    A group is dropped for its own cause, or as `no_signal` where the rewards that count are all equal. `Sample.group`
    is the group's place in `groups`.
    """
    causes = tuple(group.dropped or (None if _has_signal(group) else NO_SIGNAL) for group in groups)
    places = [
        (g, i)
        for g, group in enumerate(groups)
        if causes[g] is None
        for i, reward in enumerate(group.rewards)
        if reward is not None
    ]
    rewards = [reward for g, i in places if (reward := groups[g].rewards[i]) is not None]
    values = group_advantages(rewards, [g for g, _ in places])
    by_place = dict(zip(places, values, strict=True))
    return SampleBatch(
        samples=tuple(_sample(groups[g], g, i, value) for (g, i), value in by_place.items()),
        causes=causes,
        advantages=tuple(
            tuple(by_place.get((g, i)) for i in range(len(group.completions))) for g, group in enumerate(groups)
        ),
        num_masked=dict(
            Counter(
                group.outcomes[i]
                for g, group in enumerate(groups)
                if causes[g] is None
                for i, reward in enumerate(group.rewards)
                if reward is None
            )
        ),
    )


def tasks_without_signal(groups: Sequence[Group]) -> list[Task]:
    """The task of each group whose completions were rewarded, and all the same."""
    return [group.prompt.task for group in groups if group.dropped is None and not _has_signal(group)]


def _has_signal(group: Group) -> bool:
    return len({reward for reward in group.rewards if reward is not None}) > 1


def _sample(group: Group, index: int, i: int, advantage: float) -> Sample:
    completion = group.completions[i]
    return Sample(
        group=index,
        task=group.prompt.task,
        prompt_ids=group.prompt_ids,
        completion_ids=completion.token_ids,
        advantage=advantage,
        rollout_logprobs=completion.logprobs,
    )
