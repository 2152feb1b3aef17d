#!/usr/bin/env python3
"""Builds the miniature world: a model without weights, demonstrations to seed it, and prompts.

    python examples/miniature/build.py OUT_DIR [--seed 0]

OUT_DIR/model/         config.json (Qwen2 architecture) and an ordinary fast tokenizer with a ChatML template
OUT_DIR/sft.jsonl      demonstrations in the order of their curriculum, read once and never shuffled
OUT_DIR/train.jsonl    the prompt store of reinforcement learning
OUT_DIR/heldout.jsonl  prompts of the same tasks; their questions occur in neither of the two above

The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import teachers
import world
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

HIDDEN_SIZE = 64
MAX_POSITIONS = 512

NUM_SFT_STEPS = 1000
ROWS_PER_SFT_STEP = 128
# The tasks take turns, so a batch of any multiple of four rows has the same mixture.
SFT_TURNS = ("reasoning", "preference", "instruction", "preference")
# A referee that has to score many answers from the start learns late: it begins with few.
SFT_CANDIDATES = ((0.2, (1, 2)), (0.4, (1, 2, 3, 4)), (1.0, tuple(range(1, world.MAX_CANDIDATES + 1))))
SFT_GOOD_TEACHER = 0.75  # the first share of the demonstrations; the rest comes from the bad one
# The answers in scoring prompts teach which items belong together.
SFT_PROMPT_WEIGHT = 0.05

TRAIN_CANDIDATES = (2, 3, 4, 5, 8, 8)  # 8 is the size of a group that scores itself
NUM_TRAIN_PREFERENCES = 2400
HELDOUT_CANDIDATES = (2, 3, 5, 8)
NUM_HELDOUT_PREFERENCES = 240

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Row = dict[str, Any]


# ----------------------------------------------------------------------------------------------------- model
def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, a number or a mark; white space is dropped and every other character is unknown."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|unk|>"]
    words = list(dict.fromkeys(world.STRAY_WORDS))
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    pattern = Regex(r"\\boxed\{|\[\d+\]|\d+|[A-Za-z]+|[+,.:}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pattern, "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=HIDDEN_SIZE**-0.5,  # with 0.02, made for wide models, one this narrow hardly learns
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


# --------------------------------------------------------------------------------------------- demonstrations
def scoring_prompt(question: world.ListQuestion, answers: list[str]) -> str:
    """The recipe's `referee.template`, filled: the seed model has to know this prompt."""
    lines = [f"{neutralize(answer)} [{i}]" for i, answer in enumerate(answers, start=1)]
    return f"Score each answer to : {question.text}\n" + "\n".join(lines)


def neutralize(answer: str) -> str:
    """No answer may write a label or a verdict: a space after the first character breaks the mark."""
    for mark in ("\\boxed", *(f"[{i}]" for i in range(1, world.MAX_CANDIDATES + 1))):
        answer = answer.replace(mark, f"{mark[0]} {mark[1:]}")
    return answer


def demonstrations(rng: random.Random) -> Iterator[Row]:
    sums = world.all_sums(heldout=False)
    questions = world.all_list_questions(heldout=False)
    num_rows = NUM_SFT_STEPS * ROWS_PER_SFT_STEP
    for i in range(num_rows):
        task = SFT_TURNS[i % len(SFT_TURNS)]
        teacher = teachers.GOOD_TEACHER if i < SFT_GOOD_TEACHER * num_rows else teachers.BAD_TEACHER
        question = rng.choice(questions)
        if task == "reasoning":
            problem = rng.choice(sums)
            yield conversation(problem.text, teachers.demonstrate_sum(rng, teacher, problem))
        elif task == "instruction":
            yield conversation(question.text, teachers.demonstrate_list(rng, teacher, question))
        else:
            sizes = next(sizes for until, sizes in SFT_CANDIDATES if i < until * num_rows)
            answers = world.candidates(rng, question, rng.choice(sizes))
            verdict = teachers.demonstrate_scores(rng, teacher, question, answers)
            row = conversation(scoring_prompt(question, answers), verdict)
            yield row | {"prompt_weight": SFT_PROMPT_WEIGHT}


def conversation(user: str, assistant: str) -> Row:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


# -------------------------------------------------------------------------------------------------- prompts
def prompts(rng: random.Random, heldout: bool, num_preferences: int, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Every sum and every list question once, and list questions with candidates in the order of `sizes`."""
    split = "heldout" if heldout else "train"
    questions = world.all_list_questions(heldout)
    for i, problem in enumerate(world.all_sums(heldout)):
        row = prompt(f"reasoning/{split}/{i}", "reasoning", problem.text)
        yield row | {"answers": [str(problem.answer)]}
    for i, question in enumerate(questions):
        yield prompt(f"instruction/{split}/{i}", "instruction", question.text)
    for i in range(num_preferences):
        question = rng.choice(questions)
        answers = world.candidates(rng, question, sizes[i % len(sizes)])
        row = prompt(f"preference/{split}/{i}", "preference", question.text)
        yield row | {"responses": answers, "scores": [world.quality(question, answer) for answer in answers]}


def prompt(row_id: str, task: str, text: str) -> Row:
    messages = [{"role": "user", "content": text}]
    return {"id": row_id, "task": task, "messages": messages, "source": "miniature"}


# --------------------------------------------------------------------------------------------------- command
def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def build(out_dir: Path, seed: int) -> None:
    model_dir = out_dir / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(model_dir)
    build_config(tokenizer).save_pretrained(model_dir)

    def rng(file: str) -> random.Random:
        """A generator of its own for each file: to lengthen one leaves the others as they are."""
        return random.Random(f"{seed}/{file}")

    train = prompts(rng("train"), False, NUM_TRAIN_PREFERENCES, TRAIN_CANDIDATES)
    heldout = prompts(rng("heldout"), True, NUM_HELDOUT_PREFERENCES, HELDOUT_CANDIDATES)
    write_jsonl(out_dir / "sft.jsonl", demonstrations(rng("sft")))
    write_jsonl(out_dir / "train.jsonl", train)
    write_jsonl(out_dir / "heldout.jsonl", heldout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.out_dir, arguments.seed)
