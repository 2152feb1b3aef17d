"""One GRPO step here and in TRL: 8 prompts x 8 completions x 64 tokens, 3.5 million parameters, float32, one epoch.

Both programs are the real ones, each in a process of its own with the same threads, and take turns: `megatron-urpo
train` with its embedded engine, and TRL's GRPOTrainer with transformers' generation (`peers/trl_step.py`) in an
environment of its own, made once. Model, prompts, rewards and lengths are the same (`peers/workload.py`). A step lasts
from one line of a program's output to the next, so everything between two steps counts; each run's first step is left
out. Beside the clock on the wall stand the processor seconds of the process and how many cores other processes used
meanwhile: where those are many, the wall is a measure of them.

Threads wait asleep, not spinning (OMP_WAIT_POLICY): on a machine that others use, a spinning thread costs both programs
a time slice an operator.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from peers import workload
from peers.environments import CACHE, PEERS, python_of

ROOT = Path(__file__).parent.parent.parent
OURS, TRL = "megatron-urpo", "TRL 1.16"
PARTS = ("rollout", "old log-probs", "update", "weight sync", "rest")

CONFIG = """\
run_dir: {folder}/run
num_steps: {steps}
model: {{path: {folder}/model, dtype: float32}}
optimizer: {{lr: {lr}, schedule: constant}}
data:
  train: [{folder}/prompts.jsonl]
  prompts_per_step: {prompts}
  curriculum: [{{mix: {{reasoning: 1}}}}]
rollout: {{completions_per_prompt: {completions}, max_new_tokens: {tokens}, max_prompt_tokens: 64}}
referee: {{max_new_tokens: 64, max_prompt_tokens: 64}}
loss: {{epochs: 1}}
checkpoint: {{every: 0, resume: false}}
logging: {{task_gradients_every: 0}}
"""


@dataclass
class Step:
    """Seconds of one step by the wall and by the process's processor time; cores that others used; seconds by part."""

    wall: float
    processor: float
    others: float
    parts: dict[str, float]


class Meter:
    """Reads the clocks each time a process says that a step has ended."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.last: tuple[float, float, float] | None = None

    def lap(self) -> tuple[float, float, float] | None:
        """(wall, processor, others) since the lap before; None the first time."""
        own = sum(self.process.cpu_times()[:2])
        everyone = psutil.cpu_times()
        busy = sum(everyone) - everyone.idle - getattr(everyone, "iowait", 0.0)
        now, before = (time.perf_counter(), own, busy), self.last
        self.last = now
        if before is None:
            return None
        wall, processor, all_busy = (a - b for a, b in zip(now, before, strict=True))
        return wall, processor, max(0.0, all_busy - processor) / wall


def follow(command: Sequence[str], start: str, folder: Path, threads: int) -> tuple[list[tuple[float, ...]], list[str]]:
    """Laps of every step after the first, and the lines of all steps: those of the output that begin with `start`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    laps, lines, output = [], [], []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        meter = Meter(psutil.Process(process.pid))
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if line.startswith(start):
                lap = meter.lap()
                lines.append(line)
                laps += [lap] if lap else []
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(output[-20:])}")
    return laps, lines


def run_ours(folder: Path, threads: int) -> list[Step]:
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-m", "megatron_urpo.cli", "train", str(folder / "config.yaml")]
    laps, _ = follow(command, "step ", ROOT, threads)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] > 1]
    steps = []
    for (wall, processor, others), row in zip(laps, rows, strict=True):
        _check_length(OURS, row["completions/length_mean/reasoning"])
        parts = {
            "rollout": row["time/rollout"] + row["time/verify"],
            "old log-probs": row["time/logprobs"],
            "update": row["time/update"],
            "weight sync": row["time/weight_sync"],
        }
        steps.append(Step(wall, processor, others, {**parts, "rest": wall - sum(parts.values())}))
    return steps


def run_trl(folder: Path, num_steps: int, threads: int) -> list[Step]:
    """TRL reuses the pass of its loss for the old log-probabilities, and generates with the weights that it trains."""
    command = [str(python_of("trl")), str(PEERS / "trl_step.py"), str(folder), str(num_steps), str(threads)]
    laps, lines = follow(command, '{"total"', folder, threads)
    steps = []
    for (wall, processor, others), line in zip(laps, lines[1:], strict=True):
        row = json.loads(line)
        _check_length(TRL, row["min"], row["max"])
        parts = {"rollout": row["rollout"], "old log-probs": 0.0, "update": row["total"] - row["rollout"]}
        steps.append(Step(wall, processor, others, {**parts, "weight sync": 0.0, "rest": wall - row["total"]}))
    return steps


def _check_length(name: str, *lengths: float) -> None:
    if any(length != workload.NUM_NEW_TOKENS for length in lengths):
        sys.exit(f"{name} wrote answers of {lengths} tokens, not {workload.NUM_NEW_TOKENS}: not the same work")


def table(steps: dict[str, list[Step]]) -> None:
    print("| seconds a step, median (min - max) | " + " | ".join(steps) + " | ratio |")
    print("|---|---:|---:|---:|")
    rows = {"wall": lambda step: step.wall, "processor": lambda step: step.processor}
    for name, of in rows.items():
        values = [[of(step) for step in some] for some in steps.values()]
        cells = [f"{median(some):.2f} ({min(some):.2f} - {max(some):.2f})" for some in values]
        print(f"| {name} | {' | '.join(cells)} | {median(values[0]) / median(values[1]):.2f} |")
    for part in PARTS:
        ours, trl = (median(step.parts[part] for step in some) for some in steps.values())
        print(f"| {part} | {ours:.3f} | {trl:.3f} | {f'{ours / trl:.2f}' if min(ours, trl) > 0.01 else ''} |")
    ours, trl = (f"{median(step.others for step in some):.2f}" for some in steps.values())
    print(f"| cores used by others | {ours} | {trl} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run; the first is left out")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.steps < 2:
        parser.error("--rounds must be at least 1 and --steps at least 2, since the first step of a run is left out")
    python_of("trl")
    folder = CACHE / "step"
    folder.mkdir(parents=True, exist_ok=True)
    parameters = workload.build(folder, arguments.steps)
    settings = {"lr": workload.LEARNING_RATE, "prompts": workload.NUM_PROMPTS, "tokens": workload.NUM_NEW_TOKENS}
    config = CONFIG.format(folder=folder, steps=arguments.steps, completions=workload.NUM_COMPLETIONS, **settings)
    (folder / "config.yaml").write_text(config)
    steps: dict[str, list[Step]] = {OURS: [], TRL: []}
    for i in range(arguments.rounds):
        found = {OURS: run_ours(folder, arguments.threads)}
        found[TRL] = run_trl(folder, arguments.steps, arguments.threads)
        walls = ", ".join(f"{name} {median(s.wall for s in some):.2f} s" for name, some in found.items())
        print(f"round {i + 1} of {arguments.rounds}: {walls}", flush=True)
        for name, some in found.items():
            steps[name] += some
    print(f"{parameters:,} parameters, {arguments.threads} threads, {len(steps[OURS])} steps each")
    table(steps)


if __name__ == "__main__":
    main()
