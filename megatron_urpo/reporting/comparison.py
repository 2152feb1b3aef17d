"""A step's metrics as they were recorded and as a replay gives them, side by side, and whether they agree.

Where a replay does what the run did, every number must be the same. Where another layout or a GPU adds in another
order, the loss and the gradient norm are judged, within a tolerance: the loss as an absolute difference, since it is a
mean of terms of about 1 (normalised advantages) that may cancel to anything; the norm as a relative one. The rest is
shown: counts such as the clipped fraction move by whole tokens when a ratio lies on the edge.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LOSS, GRAD_NORM, NOT_FINITE = "policy/loss", "policy/grad_norm", "policy/not_finite"


@dataclass(frozen=True)
class Pair:
    """One metric; None is a value that is not finite, for which JSON has no word."""

    name: str
    recorded: float | None
    replayed: float | None

    def difference(self) -> float:
        """Of the values, relative for the gradient norm; infinite where one of them alone is not finite."""
        if self.recorded is None or self.replayed is None:
            return 0.0 if self.recorded is self.replayed else math.inf
        gap = abs(self.replayed - self.recorded)
        return gap / abs(self.recorded) if self.name == GRAD_NORM and gap and self.recorded else gap

    def told(self) -> str:
        """The difference in words, empty where there is none."""
        gap = self.difference()
        if gap == 0 or math.isinf(gap):
            return "not finite" if gap else ""
        return f"{gap:.1e}{' relative' if self.name == GRAD_NORM else ''}"

    def agrees(self, tolerance: float) -> bool:
        """`tolerance` 0 asks for the same number in every metric."""
        if tolerance == 0 or self.name == NOT_FINITE:
            return self.difference() == 0
        return self.name not in (LOSS, GRAD_NORM) or self.difference() <= tolerance


def pairs(recorded: Mapping[str, float | None], replayed: Mapping[str, float]) -> list[Pair]:
    """The metrics that both have, but for times."""
    return [
        Pair(name, recorded[name], value if math.isfinite(value) else None)
        for name, value in replayed.items()
        if name in recorded and not name.startswith("time/")
    ]


def verdict(compared: list[Pair], tolerance: float) -> str:
    """One line: whether they agree, by which rule, and what does not."""
    apart = [pair for pair in compared if not pair.agrees(tolerance)]
    rule = "to the last digit" if tolerance == 0 else f"loss and gradient norm within {tolerance:g}"
    if not apart:
        return f"as recorded ({rule})"
    named = ", ".join(f"{pair.name} {pair.told()}" for pair in apart[:4])
    more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
    return f"differs from the record: {named}{more} (asked for: {rule})"


def table(compared: list[Pair]) -> str:
    """Plain text, one metric a line; an empty last column means the same number."""
    width = max(len(pair.name) for pair in compared)
    lines = [f"{'metric':<{width}}  {'recorded':>14}  {'replayed':>14}  difference"]
    for pair in compared:
        row = f"{pair.name:<{width}}  {_number(pair.recorded)}  {_number(pair.replayed)}  {pair.told()}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def listing(stats: Mapping[str, float]) -> str:
    """The same of a step that has no record."""
    width = max(map(len, stats))
    return "\n".join(f"{name:<{width}}  {_number(value)}" for name, value in stats.items() if name[:5] != "time/")


def _number(value: float | None) -> str:
    return f"{'not finite' if value is None or not math.isfinite(value) else format(value, '.8g'):>14}"
