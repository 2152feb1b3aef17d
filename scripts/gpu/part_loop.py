"""The miniature's training loop through the command line: a seed model, then a few steps with each kind of layers."""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from policies import Variant, variants

MINIATURE = "examples/miniature"
METRICS = {
    "reward, reasoning": "reward/mean/reasoning",
    "entropy": "policy/entropy",
    "gradient norm": "policy/grad_norm",
    "mismatch, largest": "mismatch/max",
    "rollout, s": "time/rollout",
    "update, s": "time/update",
}


def measure(tiny: bool) -> dict[str, Any]:
    seed_steps, steps = (5, 2) if tiny else (1000, 10)
    small = ["data.prompts_per_step=6", "rollout.completions_per_prompt=3"] if tiny else []
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        world, seed = Path(folder) / "world", Path(folder) / "seed"
        run(f"{MINIATURE}/build.py", str(world))
        command_line(
            "sft", f"{MINIATURE}/seed.yaml", f"output={seed}", f"num_steps={seed_steps}", "model.spec=torch",
            f"model.path={world / 'model'}", f"data.train={world / 'sft.jsonl'}", "model.dtype=bfloat16",
            *(["data.rows_per_step=16"] if tiny else []),
        )  # fmt: skip
        for index, variant in enumerate(variants("bfloat16")):
            run_dir = Path(folder) / f"run{index}"
            command_line(
                "train", f"{MINIATURE}/config.yaml", f"run_dir={run_dir}", f"num_steps={steps}", f"model.path={seed}",
                f"data.train=[{world / 'train.jsonl'}]", "evaluation.data=[]", "checkpoint.every=0",
                *variant.overrides, *small,
            )  # fmt: skip
            lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            lines = [line for line in lines if line["step"] > 0]  # 0 is before the first
            rows.append({"layers": variant.name, **summary(lines)})
            failures += problems(variant, lines, steps)
    notes = [
        f"{steps} steps after {seed_steps} supervised ones; medians over steps with a signal, the largest mismatch."
    ]
    return {"title": "The loop in miniature", "notes": notes, "rows": rows, "failures": failures}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"steps": len(lines), "steps with a signal": sum(line["tokens/train"] > 0 for line in lines)}
    for title, name in METRICS.items():
        values = [line[name] for line in lines if line.get(name) is not None]
        row[title] = (max(values) if name == "mismatch/max" else median(values)) if values else None
    return row


def problems(variant: Variant, lines: list[dict[str, Any]], steps: int) -> list[str]:
    found = [] if len(lines) == steps else [f"{variant.name}: {len(lines)} of {steps} steps were recorded"]
    for line in lines:
        bad = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad or line.get("policy/not_finite"):
            found.append(f"{variant.name}: step {line['step']} is not finite: {', '.join(bad) or 'gradient'}")
    return found


def command_line(*arguments: str) -> None:
    run("-m", "megatron_urpo.cli", *arguments)


def run(*arguments: str) -> None:
    """A command of its own; what it said last is in the error."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
