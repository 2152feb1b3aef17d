"""The numbers of a run as the page draws them: curves of bounded length, sums over all steps, seconds by phase."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

MAX_POINTS = 1000  # of one curve: more than a screen has columns
MAX_TIMELINE_STEPS = 200

Line = dict[str, float | None]
# Lanes of the timeline: metric, who works.
LANES = (
    ("rollout", "Player"),
    ("judge", "Referee"),
    ("verify", "Verify"),
    ("logprobs", "Log-probs"),
    ("update", "Update"),
    ("weight_sync", "Sync"),
)


def curves(lines: Sequence[Line]) -> dict[str, Any]:
    """`{"steps": [...], "series": {name: [...]}, "per_point": k}` of every metric of training; None is a hole.

    Past MAX_POINTS steps a point is the mean of k steps in a row, at the last of them.
    """
    lines = [line for line in lines if is_training(line)]
    size = max(1, -(-len(lines) // MAX_POINTS))
    buckets = [lines[start : start + size] for start in range(0, len(lines), size)]
    names = dict.fromkeys(name for line in lines for name in line if name != "step" and not _is_evaluation(name))
    return {
        "steps": [bucket[-1]["step"] for bucket in buckets],
        "series": {name: [mean_of(bucket, name) for bucket in buckets] for name in names},
        "per_point": size,
    }


def evaluations(lines: Sequence[Line]) -> dict[str, Any]:
    """The held-out metrics, in the form of `curves`. Past MAX_POINTS some lines are left out, first and last never."""
    lines = [line for line in lines if any(name.startswith("eval/") for name in line)]
    if len(lines) > MAX_POINTS:
        lines = [lines[round(i * (len(lines) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("eval/"))
    return {
        "steps": [line["step"] for line in lines],
        "series": {name: [rounded(line.get(name)) for line in lines] for name in names},
        "per_point": 1,
    }


def totals(lines: Sequence[Line], prefix: str) -> dict[str, float]:
    """Sum over all steps of every metric below `prefix`, by its last word; those that never happened are left out."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    sums = {name.removeprefix(prefix): sum(line.get(name) or 0.0 for line in lines) for name in names}
    return {name: value for name, value in sums.items() if value}


def timeline(lines: Sequence[Line]) -> dict[str, Any]:
    """Seconds of every lane in the newest steps, and over the whole run each lane's median and share of the steps."""
    lines = [line for line in lines if line.get("time/step")]
    whole = sum(line["time/step"] or 0.0 for line in lines)
    names = [f"time/{lane}" for lane, _ in LANES]
    return {
        "lanes": [{"name": name, "label": label} for name, (_, label) in zip(names, LANES, strict=True)],
        "steps": [
            {name: rounded(line.get(name)) for name in ("step", "time/step", "time/evaluation", *names)}
            for line in lines[-MAX_TIMELINE_STEPS:]
        ],
        "summary": {
            name: {
                "median": rounded(median([line[name] or 0.0 for line in lines if name in line] or [0.0])),
                "share": rounded(sum(line.get(name) or 0.0 for line in lines) / whole),
            }
            for name in (*names, "time/step")
            if whole
        },
        "seconds": rounded(whole + sum(line.get("time/evaluation") or 0.0 for line in lines)),
    }


def is_training(line: Line) -> bool:
    """Step 0 is the model before training: it has held-out metrics alone."""
    return line["step"] != 0


def mean_of(lines: Sequence[Line], name: str) -> float | None:
    values = [value for line in lines if (value := line.get(name)) is not None]
    return rounded(fmean(values)) if values else None


def rounded(value: float | None) -> float | None:
    """Five digits: more than a chart can show, a third of the bytes."""
    return None if value is None else float(f"{value:.5g}")


def _is_evaluation(name: str) -> bool:
    return name.startswith("eval/") or name == "time/evaluation"
