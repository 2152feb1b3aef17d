#!/usr/bin/env python3
"""Builds the inputs of a small run on real rows: a tokenizer, a model without weights, rankings and demonstrations.

    python examples/real_rows/build.py model DATA_DIR OUT_DIR
    python examples/real_rows/build.py demonstrations DATA_DIR OUT_DIR STORE

DATA_DIR holds the publishers' own files: gsm8k/train.jsonl, alpaca_eval/annotations_*.json and
alpaca_eval/example_outputs.json.

OUT_DIR/model/          config.json (Qwen2 architecture) and a byte-level BPE tokenizer trained on the rows
OUT_DIR/rankings.jsonl  judged pairs of one instruction joined into rankings of four
OUT_DIR/sft.jsonl       demonstrations of the three formats on prompts of STORE, so that there is something to reward

The same files write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.data.chat import load_tokenizer
from megatron_urpo.data.sources.alpaca_eval import gold_pair
from megatron_urpo.data.store import load_prompts
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.types import PreferencePrompt, Prompt, ReasoningPrompt

VOCAB_SIZE = 2048
HIDDEN_SIZE = 64
MAX_POSITIONS = 640

NUM_DEMONSTRATIONS = 1280
BEST_SCORE, WORST_SCORE = 9, 2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ----------------------------------------------------------------------------------------------------- model
def write_model(folder: Path, texts: Iterable[str]) -> None:
    """The miniature's architecture at this vocabulary; the tokenizer knows every byte, so no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(fast),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=HIDDEN_SIZE**-0.5,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    config.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ rows
def published(data_dir: Path) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """(GSM8K's rows, the rows of each file of annotations)."""
    gsm8k = [json.loads(line) for line in (data_dir / "gsm8k" / "train.jsonl").read_text().splitlines()]
    files = sorted((data_dir / "alpaca_eval").glob("annotations_*.json"))
    return gsm8k, [json.loads(file.read_text()) for file in files]


def rankings(files: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Pairs of one instruction that share `output_1` joined into one ranking: who beat it, it, who lost to it.

    Those on the same side of it are tied: they were never compared with each other. Rows {prompt, responses, scores}.
    """
    by_baseline: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for rows in files:
        for row in rows:
            if row["preference"] is not None:
                gold = gold_pair(row["preference"])[1]
                by_baseline[row["instruction"], row["output_1"]].append((row["output_2"], gold))
    for (instruction, baseline), others in by_baseline.items():
        if len(others) == len(files):
            yield {
                "prompt": instruction,
                "responses": [baseline, *(output for output, _ in others)],
                "scores": [0.5, *(value for _, value in others)],
            }


# --------------------------------------------------------------------------------------------- demonstrations
def demonstrations(
    prompts: Sequence[Prompt], answers: dict[str, str], scoring: ScoringPrompts
) -> Iterator[dict[str, object]]:
    """Only what the answers look like: a box with the truth, a box with one score for each response, a short text."""
    rng = random.Random(0)
    by_task = {task: [p for p in prompts if p.task == task] for task in ("preference", "reasoning")}
    short = [p for p in prompts if answers.get(p.id)]
    turns = (by_task["preference"], by_task["reasoning"], by_task["preference"], short)
    for i in range(NUM_DEMONSTRATIONS):
        prompt = rng.choice(turns[i % len(turns)])
        question, answer = prompt.messages[0].content, answers.get(prompt.id, "")
        if isinstance(prompt, ReasoningPrompt):
            answer = f"\\boxed{{{prompt.answers[0]}}}"
        elif isinstance(prompt, PreferencePrompt):
            order = rng.sample(range(len(prompt.responses)), len(prompt.responses))
            question = scoring.text(question, [prompt.responses[j] for j in order])
            answer = "\\boxed{" + ", ".join(str(score(rng, prompt.gold[j])) for j in order) + "}"
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def score(rng: random.Random, gold: float) -> int:
    """A noisy score between the worst and the best, so that the referee that learns from it has more to learn."""
    return max(0, min(10, round(WORST_SCORE + (BEST_SCORE - WORST_SCORE) * gold) + rng.randint(-2, 2)))


# --------------------------------------------------------------------------------------------------- commands
def build_model(data_dir: Path, out_dir: Path) -> None:
    gsm8k, files = published(data_dir)
    texts = [row["question"] for row in gsm8k]
    texts += [row[name] for rows in files for row in rows for name in ("instruction", "output_1", "output_2")]
    write_model(out_dir / "model", texts)
    write_jsonl(out_dir / "rankings.jsonl", rankings(files))


def build_demonstrations(data_dir: Path, out_dir: Path, store: Path) -> None:
    tokenizer = load_tokenizer(out_dir / "model")
    outputs = json.loads((data_dir / "alpaca_eval" / "example_outputs.json").read_text())
    answers = {f"alpaca_eval_instructions/example_outputs/{i}": row["output"] for i, row in enumerate(outputs, start=1)}
    short = {key: text for key, text in answers.items() if len(tokenizer.encode(text)) < 40}
    scoring = ScoringPrompts(RefereeConfig(), tokenizer)
    write_jsonl(out_dir / "sft.jsonl", demonstrations(list(load_prompts([store])), short, scoring))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["model", "demonstrations"])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("store", type=Path, nargs="?")
    arguments = parser.parse_args()
    try:
        if arguments.what == "model":
            build_model(arguments.data_dir, arguments.out_dir)
        else:
            build_demonstrations(arguments.data_dir, arguments.out_dir, arguments.store)
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} does not exist; DATA_DIR holds gsm8k/ and alpaca_eval/ as published")
