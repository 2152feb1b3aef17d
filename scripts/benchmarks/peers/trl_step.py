"""Trains a few GRPO steps with TRL and prints one JSON object for each:  python trl_step.py FOLDER STEPS THREADS

FOLDER is what `workload.build` wrote. Runs in TRL's own environment, where nothing of this project is installed.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NUM_PROMPTS, NUM_COMPLETIONS, NUM_NEW_TOKENS, LEARNING_RATE = 8, 8, 64, 1e-6


class TimedTrainer(GRPOTrainer):
    """Times the rollout: generation, decoding and rewards. What is left of a step is the update."""

    rollout_seconds = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        start = time.perf_counter()
        result = super()._generate_and_score_completions(inputs)
        self.rollout_seconds = time.perf_counter() - start
        return result


class Printer(TrainerCallback):
    """A step lasts from the end of the one before to its own end, whatever happens between them."""

    def __init__(self) -> None:
        self.trainer: TimedTrainer | None = None
        self.start = 0.0
        self.line: dict[str, float] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        now = time.perf_counter()
        self.line = {"total": now - self.start, "rollout": self.trainer.rollout_seconds}
        self.start = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            lengths = {name: logs[f"completions/{name}_length"] for name in ("min", "max")}
            print(json.dumps({**self.line, **lengths, "grad_norm": logs["grad_norm"]}), flush=True)


def reward(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
    """1 where the last box holds an accepted answer."""
    boxes = [re.findall(r"\\boxed\{(\d)\}", completion[0]["content"]) for completion in completions]
    return [float(bool(found) and found[-1] in accepted) for found, accepted in zip(boxes, answers, strict=True)]


def main() -> None:
    folder, num_steps, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    printer = Printer()
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "model", padding_side="left"),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": row["messages"], "answers": row["answers"]} for row in rows]),
        callbacks=[printer],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            max_steps=num_steps,
            per_device_train_batch_size=NUM_PROMPTS * NUM_COMPLETIONS,
            gradient_accumulation_steps=1,
            num_generations=NUM_COMPLETIONS,
            max_completion_length=NUM_NEW_TOKENS,
            num_iterations=1,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
    )
    printer.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
