#!/usr/bin/env python3
"""Builds the inputs of a small run on real rows: a tokenizer, a model without weights, demonstrations and prompts.

    python examples/real_rows/build.py DATA_DIR OUT_DIR

DATA_DIR holds the publishers' own files: gsm8k/train.jsonl, alpaca_eval/annotations_*.json and
alpaca_eval/example_outputs.json.

OUT_DIR/model/       config.json (Qwen2 architecture) and a byte-level BPE tokenizer trained on the rows
OUT_DIR/train.jsonl  the prompt store: every row that fits the small context
OUT_DIR/sft.jsonl    demonstrations of the three formats, so that there is something to reward

The same files write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import readers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.data.chat import HuggingFaceTokenizer, load_tokenizer
from megatron_urpo.data.store import write_store
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.types import Message, PreferencePrompt, Prompt, ReasoningPrompt

VOCAB_SIZE = 2048
HIDDEN_SIZE = 64
MAX_POSITIONS = 640
# The limits of config.yaml: longer rows are left out.
MAX_QUESTION_TOKENS = 160
MAX_SCORING_TOKENS = 512

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


# --------------------------------------------------------------------------------------------------- prompts
def fits(prompt: Prompt, tokenizer: HuggingFaceTokenizer, scoring: ScoringPrompts) -> bool:
    """Whether a prompt can be answered, or scored without a cut, within the limits."""
    if isinstance(prompt, PreferencePrompt):
        text = scoring.text(prompt.messages[0].content, prompt.responses)
        return len(tokenizer.encode_chat([Message("user", text)])) <= MAX_SCORING_TOKENS
    return len(tokenizer.encode_chat(prompt.messages)) <= MAX_QUESTION_TOKENS


# --------------------------------------------------------------------------------------------- demonstrations
def demonstrations(
    prompts: list[Prompt], answers: dict[str, str], scoring: ScoringPrompts
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


# --------------------------------------------------------------------------------------------------- command
def build(data_dir: Path, out_dir: Path) -> None:
    answers = readers.instruction_answers(data_dir)
    everything = list(readers.prompts(data_dir))
    texts = (text for prompt in everything for text in readers.texts(prompt))
    write_model(out_dir / "model", texts)
    tokenizer = load_tokenizer(out_dir / "model")
    scoring = ScoringPrompts(RefereeConfig(), tokenizer)
    prompts = [prompt for prompt in everything if fits(prompt, tokenizer, scoring)]
    write_store(out_dir / "train.jsonl", prompts)
    short = {key: text for key, text in answers.items() if len(tokenizer.encode(text)) < 40}
    with (out_dir / "sft.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in demonstrations(prompts, short, scoring))
    for task in ("reasoning", "preference", "instruction"):
        kept, found = (sum(p.task == task for p in those) for those in (prompts, everything))
        print(f"{task}: {kept} of {found} rows fit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    try:
        build(arguments.data_dir, arguments.out_dir)
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} does not exist; DATA_DIR holds gsm8k/ and alpaca_eval/ as published")
