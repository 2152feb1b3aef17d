"""Which responses of a long ranking are kept, so that the ranking that is left tells as much as it can.

Most untied pairs: responses are drawn from as many levels of the ranking as there are places, best and worst first.
"""

import random
from collections.abc import Sequence

from megatron_urpo.types import PreferencePrompt


def choose_candidates(gold: Sequence[float], count: int, seed: str) -> list[int]:
    """`count` indices of `gold`, in their own order; all of them where there are no more. The same seed, the same."""
    if len(gold) <= count:
        return list(range(len(gold)))
    rng = random.Random(seed)
    levels: dict[float, list[int]] = {}
    for index, value in enumerate(gold):
        levels.setdefault(value, []).append(index)
    for members in levels.values():
        rng.shuffle(members)
    worst, *between, best = sorted(levels) if len(levels) > 1 else [*levels, *levels]
    rng.shuffle(between)
    # Round by round one response of each level, so that ties come last.
    order = list(dict.fromkeys([best, worst, *between]))
    drawn = [levels[value].pop() for _ in range(len(gold)) for value in order if levels[value]]
    return sorted(drawn[:count])


def subsample(prompt: PreferencePrompt, count: int, seed: str) -> PreferencePrompt:
    """`prompt` with at most `count` responses."""
    kept = choose_candidates(prompt.gold, count, f"{seed}/{prompt.id}")
    responses, gold = tuple(prompt.responses[i] for i in kept), tuple(prompt.gold[i] for i in kept)
    return PreferencePrompt(prompt.id, prompt.messages, responses, gold, prompt.source)
