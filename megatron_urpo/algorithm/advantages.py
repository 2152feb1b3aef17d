"""Group-relative advantages: a completion is compared with the others that answer the same prompt."""

import math
from collections import defaultdict
from collections.abc import Sequence


def group_advantages(rewards: Sequence[float], groups: Sequence[int], eps: float = 1e-6) -> list[float]:
    """(reward - mean) / (std + eps) within each group, in the order given.

    `groups[i]` is the group of `rewards[i]`; members may stand in any order and groups may differ in size, as they do
    once masked completions are left out. The standard deviation is the population's (divided by the group's size), so
    a lone right answer among G completions stands out by sqrt(G - 1). A group of equal rewards, or of one member,
    gets zeros. Source: GRPO, as URPO uses it.

    Raises:
        ValueError: unequal lengths, or a reward that is not finite.
    """
    if len(rewards) != len(groups):
        raise ValueError(f"{len(rewards)} rewards for {len(groups)} group ids; give one group id for each reward")
    members: dict[int, list[int]] = defaultdict(list)
    for index, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        if not math.isfinite(reward):
            raise ValueError(f"reward {index} of group {group} is {reward}; rewards are finite, mask it instead")
        members[group].append(index)
    advantages = [0.0] * len(rewards)
    for indices in members.values():
        values = [rewards[index] for index in indices]
        if max(values) == min(values):
            continue  # rounding in the mean would otherwise be blown up by 1 / eps
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        for index, value in zip(indices, values, strict=True):
            advantages[index] = (value - mean) / (std + eps)
    return advantages
