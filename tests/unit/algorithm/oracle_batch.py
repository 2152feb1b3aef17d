"""A small batch as nested lists: what the oracles walk token by token, and what the code takes as flat tensors."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_LOW, CLIP_HIGH = 0.2, 0.28


@dataclass(frozen=True)
class Batch:
    """Completion i belongs to `groups[i]`; its reward is None where it is masked. Inner lists: one number a token."""

    rewards: list[float | None]
    groups: list[int]
    old: list[list[float]]
    new: list[list[float]]
    reference: list[list[float]]
    rollout: list[list[float]]

    @property
    def kept(self) -> list[int]:
        return [i for i, reward in enumerate(self.rewards) if reward is not None]

    def flat(self, rows: Sequence[Sequence[float]]) -> Tensor:
        """The tokens of all kept completions, [T]."""
        return torch.tensor([value for i in self.kept for value in rows[i]], dtype=torch.float64)

    def each_token(self, values: Sequence[float]) -> Tensor:
        """`values[k]`, of the k-th kept completion, repeated for its tokens, [T]."""
        pairs = zip(self.kept, values, strict=True)
        return torch.tensor([value for i, value in pairs for _ in self.new[i]], dtype=torch.float64)

    def padded(self, rows: Sequence[Sequence[float]]) -> Tensor:
        """[completions, longest], masked completions included; padding is 0."""
        longest = max(len(row) for row in rows)
        return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows], dtype=torch.float64)

    @property
    def mask(self) -> Tensor:
        """1 where a token counts, [completions, longest]."""
        ones = [[float(i in self.kept)] * len(row) for i, row in enumerate(self.new)]
        return self.padded(ones)


def make_batch(seed: int) -> Batch:
    """Groups of 2 to 6 completions in mixed order, about one in six masked, ratios from about 0.5 to 2."""
    draw = random.Random(seed)
    groups = [group for group in range(4) for _ in range(draw.randint(2, 6))]
    draw.shuffle(groups)
    rewards: list[float | None] = [draw.choice([0.0, 1.0, -1 / 3, draw.uniform(0, 10)]) for _ in groups]
    for i in draw.sample(range(len(groups)), len(groups) // 6):
        rewards[i] = None
    new = [[draw.uniform(-5, -0.1) for _ in range(draw.randint(1, 9))] for _ in groups]

    def near(spread: float) -> list[list[float]]:
        return [[value + draw.gauss(0, spread) for value in row] for row in new]

    return Batch(rewards, groups, near(0.3), new, near(0.5), near(0.4))
