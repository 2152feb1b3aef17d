"""One training step that every peer can run: a small random model, its tokenizer, and prompts.

Everything that would make two programs do different work is fixed by construction. Answers never stop early, since the
stop token's logit is held far below all others. Every word carries a boxed 0 or 1, so that the answers of a model that
knows nothing still earn both rewards, and hardly a group is without a signal.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

NUM_PROMPTS = 8
NUM_COMPLETIONS = 8
NUM_NEW_TOKENS = 64
PROMPT_WORDS = (16, 32)
NUM_WORDS = 2048
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
LEARNING_RATE = 1e-6
"""So small that the model of the last step is as random as that of the first."""


def build(folder: Path, num_steps: int) -> int:
    """Writes folder/model and folder/prompts.jsonl, a row for each prompt of `num_steps` steps; parameters."""
    words = [*SPECIAL, *(f"w{i}\\boxed{{{i % 2}}}" for i in range(len(SPECIAL), NUM_WORDS))]
    build_tokenizer(words).save_pretrained(folder / "model")
    model = build_model(SPECIAL.index("<|im_end|>"))
    model.save_pretrained(folder / "model")
    rng = random.Random(0)
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(NUM_PROMPTS * num_steps):
            text = " ".join(rng.choices(words[len(SPECIAL) :], k=rng.randint(*PROMPT_WORDS)))
            messages = [{"role": "user", "content": text}]
            row = {"id": f"random/{i}", "task": "reasoning", "messages": messages, "answers": [str(i % 2)]}
            file.write(json.dumps({**row, "source": "random"}) + "\n")
    return sum(parameter.numel() for parameter in model.parameters())


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, words parted by white space."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[1]],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(stop: int) -> Qwen2ForCausalLM:
    """3.5 million random parameters that never say `stop`."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=NUM_WORDS,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=stop,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        # The first hidden dimension is the same positive number everywhere, and only the stop token's logit reads it.
        model.model.embed_tokens.weight[:, 0] = 0.1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[stop] = 0
        model.lm_head.weight[stop, 0] = -1000
    return model
