#!/usr/bin/env python3
"""Held-out figures of several runs as one Markdown table: means over the runs, and the spread of the change.

python examples/miniature/table.py RUN_DIR...
"""

import json
import sys
from pathlib import Path
from statistics import fmean


def evaluated_lines(run_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that hold an evaluation, in order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if any(name.startswith("eval/") for name in line)]


def main(run_dirs: list[Path]) -> None:
    runs = [evaluated_lines(run_dir) for run_dir in run_dirs]
    steps = sorted(set.intersection(*({int(line["step"]) for line in run} for run in runs)))
    names = [name for name in runs[0][0] if name.startswith("eval/") and name != "eval/dropped_prompts"]
    print(f"| metric ({len(runs)} runs) | " + " | ".join(f"step {step}" for step in steps) + " | change, each run |")
    print("|---|" + "---:|" * (len(steps) + 1))
    for name in names:
        by_step = [[line[name] for run in runs for line in run if line["step"] == step] for step in steps]
        changes = [after - before for before, after in zip(by_step[0], by_step[-1], strict=True)]
        cells = [f"{fmean(values):.3f}" for values in by_step] + [" ".join(f"{change:+.3f}" for change in changes)]
        print(f"| {name.removeprefix('eval/')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
