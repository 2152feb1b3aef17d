#!/usr/bin/env python3
"""Packing beside its floor: rows a second beside the bare tokenizer's batch encode of the same text, and peak memory.

    bash scripts/benchmark.sh data [--rows 20000] [--times 10] [--data ../shared/data]

Rows are made of published text (GSM8K, alpaca_eval): questions, and pairs of answers to one. The tokenizer is a BPE of
32k tokens trained on it, with Qwen's pre-tokenizer. The packed rows are those of a whole `megatron-urpo pack` command,
start-up included, on every core; the floor is `encode_batch_fast` of the texts that the model sees, on all threads,
before and after. Processor time is shown too: of a machine that others use it says more than the clock.
Peak memory is the sum over the command's processes, at `--rows` and at `--times` as many.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.data.chat import load_tokenizer
from megatron_urpo.data.store import load_prompts
from megatron_urpo.packing.chunks import model_text
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts

VOCABULARY = 32_000
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GOAL = 0.6
POLL_SECONDS = 0.05


def published(data: Path) -> tuple[list[str], list[str]]:
    """(questions, answers)."""
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    rows = [row for file in sorted(data.glob("alpaca_eval/annotations_*.json")) for row in json.loads(file.read_text())]
    questions = [json.loads(line)["question"] for line in lines] + [row["instruction"] for row in rows]
    return questions, [row[name] for row in rows for name in ("output_1", "output_2")]


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


def write_rows(file: Path, count: int, questions: list[str], answers: list[str]) -> None:
    """Pairs and plain questions by turns, none like another."""
    rng = random.Random(count)

    def rows() -> Iterator[dict[str, object]]:
        for i in range(count):
            yield {
                "prompt": f"{rng.choice(questions)} {rng.choice(questions)} ({i})",
                "responses": rng.sample(answers, 2),
                "scores": [1, 0],
            }

    with file.open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows())


@dataclass(frozen=True, slots=True)
class Measured:
    """`busy`: processor seconds of all processes and threads."""

    rows: int
    seconds: float
    busy: float
    peak_mib: float = 0.0


def run_pack(folder: Path, rows: Path, count: int, data: Path) -> Measured:
    """The whole command."""
    config = {
        "output": str(folder / "store"), "tokenizer": str(folder / "tokenizer"), "overwrite": True,
        "sources": [{"dataset": "prompt_responses", "path": str(rows)}],
        "decontaminate_against": [
            {"dataset": "gsm8k", "path": str(data / "gsm8k" / "test.jsonl")},
            {"dataset": "skywork_or1", "path": str(data / "aime")},
        ],
    }  # fmt: skip
    (folder / "pack.yaml").write_text(yaml.safe_dump(config))
    start = time.perf_counter()
    command = [sys.executable, "tools/pack_data.py", str(folder / "pack.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peak = 0
    busy: dict[int, float] = {}
    while process.poll() is None:
        peak = max(peak, look_at_tree(process.pid, busy))
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said)
    return Measured(count, seconds, sum(busy.values()), peak / 2**20)


def look_at_tree(pid: int, busy: dict[int, float]) -> int:
    """Resident bytes of a process and all below it, what they share counted in each; `busy` is brought up to date."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
            times = process.cpu_times()
            busy[process.pid] = times.user + times.system
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total


class Floor:
    """The bare tokenizer over the texts that the model sees of a packed store."""

    def __init__(self, folder: Path) -> None:
        tokenizer = load_tokenizer(folder / "tokenizer")
        scoring = ScoringPrompts(RefereeConfig(), tokenizer)
        self._texts = [model_text(prompt, tokenizer, scoring) for prompt in load_prompts([folder / "store"])]
        self._bare = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        tokens = sum(map(len, self._bare.encode_batch_fast(self._texts[:1000], add_special_tokens=False))) / 1000
        print(f"text: {sum(map(len, self._texts)) / 1e6:.0f} MB, {tokens:.0f} tokens a row")

    def run(self) -> Measured:
        start, busy = time.perf_counter(), time.process_time()
        for first in range(0, len(self._texts), 1000):
            self._bare.encode_batch_fast(self._texts[first : first + 1000], add_special_tokens=False)
        return Measured(len(self._texts), time.perf_counter() - start, time.process_time() - busy)


def show(name: str, measured: Measured) -> None:
    memory = f", peak {measured.peak_mib:,.0f} MiB" if measured.peak_mib else ""
    print(f"{name}: {measured.rows:,} rows, {measured.seconds:.1f} s, {measured.rows / measured.seconds:,.0f} rows/s,"
          f" {measured.busy / measured.rows * 1e6:,.0f} us of processor a row{memory}", flush=True)  # fmt: skip


def ratios(name: str, packed: Measured, bare: list[Measured]) -> None:
    """Rows a second of packing over the mean of the bare tokenizer's before and after; the same of processor time."""
    per_row = sum(run.seconds / run.rows for run in bare) / len(bare)
    busy_per_row = sum(run.busy / run.rows for run in bare) / len(bare)
    print(f"packing / bare tokenizer, {name}: {per_row * packed.rows / packed.seconds:.2f} (goal {GOAL}),"
          f" by processor time {busy_per_row * packed.rows / packed.busy:.2f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    questions, answers = published(arguments.data)
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer", [*questions, *answers])
        print(f"{len(os.sched_getaffinity(0))} cores")

        def packed(count: int) -> Measured:
            rows = folder / "rows.jsonl"
            write_rows(rows, count, questions, answers)
            measured = run_pack(folder, rows, count, arguments.data)
            show("packing", measured)
            return measured

        def floored() -> Measured:
            measured = floor.run()
            show("bare tokenizer", measured)
            return measured

        few = packed(arguments.rows)
        floor = Floor(folder)
        bare = [floored()]
        many = packed(arguments.rows * arguments.times)
        bare.append(floored())
        between = Measured(many.rows - few.rows, many.seconds - few.seconds, many.busy - few.busy)
        ratios(f"{few.rows:,} rows", few, bare[:1])
        ratios(f"{many.rows:,} rows", many, bare)
        ratios(f"{between.rows:,} rows more", between, bare)
        print(f"peak memory at {arguments.times} times the input: {many.peak_mib / few.peak_mib:.2f} of that at 1")


if __name__ == "__main__":
    main()
