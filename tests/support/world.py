"""The smallest inputs of a training run, and a model whose every answer is written down beforehand.

`write_chain_model` makes a real Qwen2 folder whose layers add nothing and whose embeddings are one-hot: the next token
depends on the current one alone, with the probabilities that the test gives. So the package's own engine, loop and
trainer run unchanged on completions that are empty, endless or unreadable as often as a test wants.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

END = "<|im_end|>"
HEADER = "assistant"  # the last token before a completion
TOWER = "9^{9^{9^{9}}}"  # no verifier can evaluate it
SPECIAL = ("<|pad|>", "<|im_start|>", END, "<|unk|>")
WORDS = ("user", HEADER, "q", "a", "b", "\\boxed{", "}", ",", *"0123456789", TOWER)
VOCABULARY = (*SPECIAL, *WORDS)
HIDDEN_SIZE = 32
MAX_POSITIONS = 64
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)

Chain = Mapping[str, Mapping[str, float]]
"""Probability of each next token after each token; a token that is not named is followed by END."""


def write_tokenizer(folder: Path, extra: Sequence[str] = ()) -> None:
    """One token a word; `extra` words make its vocabulary larger than the model's."""
    words = {word: index for index, word in enumerate((*VOCABULARY, *extra))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|unk|>"))
    pattern = Regex(r"\\boxed\{|\d|[A-Za-z]+|[,}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pattern, "isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token=END, unk_token="<|unk|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    fast.save_pretrained(folder)


def write_chain_model(folder: Path, chain: Chain) -> None:
    """A model folder with tokenizer and weights that continues by `chain`."""
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"], vocab_size=len(VOCABULARY), hidden_size=HIDDEN_SIZE, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False, eos_token_id=VOCABULARY.index(END), pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # what a layer adds to the residual stream
        embedding = torch.eye(HIDDEN_SIZE)[: len(VOCABULARY)]
        model.model.embed_tokens.weight.copy_(embedding)
        # The last norm scales a one-hot vector to length sqrt(HIDDEN_SIZE).
        model.lm_head.weight.copy_(_logits(chain) @ embedding / math.sqrt(HIDDEN_SIZE))
    model.save_pretrained(folder)
    write_tokenizer(folder)


def _logits(chain: Chain) -> torch.Tensor:
    """[next, current]: logits of the next token after each token."""
    logits = torch.full((len(VOCABULARY), len(VOCABULARY)), -40.0)
    for current, word in enumerate(VOCABULARY):
        for following, probability in chain.get(word, {END: 1.0}).items():
            logits[VOCABULARY.index(following), current] = math.log(probability)
    return logits


def row(task: str, number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"{task}/{number}", "task": task, "messages": [{"role": "user", "content": f"q {number}"}], **fields}


def write_store(
    path: Path, *, answer: str = "1", tasks: Sequence[str] = ("reasoning", "preference", "instruction")
) -> None:
    """A few prompts of each task; every reasoning prompt has the same `answer`."""
    fields: dict[str, dict[str, Any]] = {
        "reasoning": {"answers": [answer]},
        "preference": {"responses": ["a", "b"], "scores": [1, 0]},
        "instruction": {},
    }
    rows = [row(task, number, **fields[task]) for task in tasks for number in range(3)]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))


def write_config(folder: Path, **changes: Any) -> Path:
    """A run of four steps on `folder`/model and `folder`/train.jsonl; `changes` are merged over its sections."""
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "num_steps": 4,
        "model": {"path": str(folder / "model"), "dtype": "float32", "spec": "torch"},
        "optimizer": {"lr": 1e-6},
        "data": {
            "train": [str(folder / "train.jsonl")],
            "prompts_per_step": 6,
            "curriculum": [{"mix": {"preference": 1, "reasoning": 1, "instruction": 1}}],
        },
        "rollout": {"completions_per_prompt": 2, "max_new_tokens": 8, "max_prompt_tokens": 16},
        "referee": {
            "template": {"prompt": "q {question} {responses}", "response": "{index} {response}"},
            "max_new_tokens": 8,
            "max_prompt_tokens": 40,
        },
        "loss": {"epochs": 1, "max_tokens_per_micro_batch": 256},
        "verifier": {"workers": 1},
    }
    for section, value in changes.items():
        tree[section] = {**tree.get(section, {}), **value} if isinstance(value, dict) else value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
