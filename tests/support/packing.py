"""What the tests of packing share: a small tokenizer folder, and packing without a config file."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_urpo.config.pack import PackConfig
from megatron_urpo.data.manifest import Manifest
from megatron_urpo.data.store import load_prompts
from megatron_urpo.packing.pack import pack
from megatron_urpo.types import Prompt

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('late system') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path, template: str | None = CHAT_TEMPLATE, merges: tuple[tuple[str, str], ...] = ()
) -> Path:
    """One token a byte, ChatML; `merges` makes it another tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def pack_config(folder: Path, *sources: dict[str, Any], **values: Any) -> PackConfig:
    """Packs into `folder`/store in this process; no row may be rejected unless `values` say so."""
    tree = {"output": folder / "store", "tokenizer": folder / "tokenizer", "processes": 1, "sources": sources,
            "max_rejected_fraction": 0, **values}  # fmt: skip
    return PackConfig.model_validate(tree)


def packed(folder: Path, *sources: dict[str, Any], **values: Any) -> tuple[dict[str, Prompt], Manifest]:
    """(prompts by id, manifest) of a store that is packed now."""
    config = pack_config(folder, *sources, overwrite=True, **values)
    manifest = pack(config)
    prompts = list(load_prompts([config.output])) if manifest.num_rows else []
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == len(prompts)
    return {prompt.id: prompt for prompt in prompts}, manifest


def left_out(folder: Path, file: str = "rejected.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "store" / file).read_text().splitlines()]
