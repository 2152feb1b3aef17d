"""What a person should look at first, from the numbers alone. Thresholds are rules of thumb and are told."""

from collections.abc import Sequence

from megatron_urpo.reporting.report.curves import Line, is_training, mean_of

LATE_SHARE = 0.1  # of the steps, but never fewer than LATE_STEPS
LATE_STEPS = 5

# metric, "above" or "below", limit, what it means
RULES: tuple[tuple[str, str, float, str], ...] = (
    ("referee/verdict_ok_fraction", "below", 0.9,
     "Verdicts cannot be read: instruction groups are masked and preference groups learn the form alone."),
    ("reasoning/verifier_error_fraction", "above", 0.01, "The verifier fails on completions; they are masked."),
    ("completions/truncated_fraction/reasoning", "above", 0.2, "Reasoning completions run into the length limit."),
    ("completions/truncated_fraction/preference", "above", 0.2, "Verdicts run into the length limit."),
    ("completions/truncated_fraction/instruction", "above", 0.2, "Instruction completions run into the length limit."),
    ("mismatch/kl", "above", 0.01, "The engine and the trainer disagree about log-probabilities."),
    ("policy/clip_fraction", "above", 0.3, "Many tokens are clipped: the step size or the number of epochs is high."),
    ("referee/vote_agreement", "below", 0.3, "Votes on the same group disagree."),
)  # fmt: skip


def findings(lines: Sequence[Line]) -> list[dict[str, str]]:
    """`[{"level": "bad" | "watch", "text": ..., "why": ...}]`, the worse first; "late" is the last tenth of the run."""
    training = [line for line in lines if is_training(line)]
    if not training:
        return []
    num_late = max(LATE_STEPS, int(len(training) * LATE_SHARE))
    early, late = training[:num_late], training[-num_late:]
    found = [*_hacking(lines, early, late), *_dropped(late), *_biased(early, late), *_collapse(early, late)]
    for name, side, limit, meaning in RULES:
        value = mean_of(late, name)
        if value is not None and (value > limit if side == "above" else value < limit):
            found.append(_watch(f"{name} is {_shown(value)} late in the run ({side} {limit:g}).", meaning))
    return sorted(found, key=lambda finding: finding["level"] != "bad")


def _hacking(lines: Sequence[Line], early: Sequence[Line], late: Sequence[Line]) -> list[dict[str, str]]:
    """The referee likes the answers better, and an outside measure does not."""
    quality = _first_and_last(lines, "eval/instruction/quality")
    found = []
    before, after = mean_of(early, "reward/mean/instruction"), mean_of(late, "reward/mean/instruction")
    measured = _first_and_last(lines, "eval/instruction/self_score") or (before, after)
    if quality and measured[0] is not None and measured[1] is not None:
        rose = measured[1] > measured[0] and quality[1] < quality[0] - 0.01
        if rose:
            found.append({
                "level": "bad",
                "text": f"Self-scores rose from {_shown(measured[0])} to {_shown(measured[1])} while held-out quality"
                f" fell from {_shown(quality[0])} to {_shown(quality[1])}.",
                "why": "The picture of reward hacking: read the most suspicious groups.",
            })  # fmt: skip
    for name in ("reasoning/accuracy", "preference/tau"):
        pair = _first_and_last(lines, f"eval/{name}")
        if pair and pair[1] < pair[0] - 0.02:
            found.append({
                "level": "bad",
                "text": f"eval/{name} fell from {_shown(pair[0])} to {_shown(pair[1])}.",
                "why": "The model is worse than before training at this task.",
            })  # fmt: skip
    return found


def _dropped(late: Sequence[Line]) -> list[dict[str, str]]:
    prefix = "groups/dropped/"
    total = sum(line.get("groups/total") or 0.0 for line in late)
    counts = {
        name: sum(line.get(name) or 0.0 for line in late) for line in late for name in line if name.startswith(prefix)
    }
    share = sum(counts.values()) / total if total else 0.0
    if share < 0.25:
        return []
    cause = max(counts, key=lambda name: counts[name])
    return [{
        "level": "bad" if share > 0.5 else "watch",
        "text": f"{share:.0%} of the groups are dropped late in the run, most as {cause.removeprefix(prefix)}.",
        "why": "They cost a rollout and teach nothing.",
    }]  # fmt: skip


def _biased(early: Sequence[Line], late: Sequence[Line]) -> list[dict[str, str]]:
    found = []
    position = mean_of(late, "referee/position_bias")
    if position is not None and abs(position) > 0.15:
        why = "The referee prefers responses by their place; 0 is fair, +1 favours the last."
        found.append(_watch(f"Position bias is {position:+.2f} late in the run.", why))
    before, after = (mean_of(part, "referee/length_correlation") for part in (early, late))
    if before is not None and after is not None and after > 0.3 and after > before + 0.15:
        why = "The referee gives longer responses more than it did: compare lengths with quality."
        found.append(_watch(f"Length correlation rose from {before:+.2f} to {after:+.2f}.", why))
    return found


def _collapse(early: Sequence[Line], late: Sequence[Line]) -> list[dict[str, str]]:
    before, after = mean_of(early, "policy/entropy"), mean_of(late, "policy/entropy")
    if before is None or after is None or before <= 0 or after > 0.3 * before:
        return []
    return [_watch(f"Entropy fell from {_shown(before)} to {_shown(after)}.", "Completions of a group grow alike.")]


def _first_and_last(lines: Sequence[Line], name: str) -> tuple[float, float] | None:
    values = [value for line in lines if (value := line.get(name)) is not None]
    return (values[0], values[-1]) if len(values) > 1 else None


def _watch(text: str, why: str) -> dict[str, str]:
    return {"level": "watch", "text": text, "why": why}


def _shown(value: float) -> str:
    return f"{value:.3g}"
