"""Tokens a second and model FLOPs utilisation of `policy.update`, at the shapes of Qwen2.5 with random weights."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from policies import Variant, joined_policy, variants
from shapes import SHAPES, model_flops, peak_tflops, write_model_config
from timing import peak_mib, timed

from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.update import update
from megatron_urpo.types import Sample

PROMPT, COMPLETION, NUM_SAMPLES = 512, 1536, 32
MICRO_BATCH_TOKENS = 8192
TINY = (5, 11, 6)


def measure(tiny: bool) -> dict[str, Any]:
    prompt, completion, count = TINY if tiny else (PROMPT, COMPLETION, NUM_SAMPLES)
    names = ["tiny"] if tiny else ["0.5B", "1.5B"]
    rows = [
        measure_one(name, variant, prompt, completion, count, tiny)
        for name in names
        for variant in variants("bfloat16")
    ]
    notes = [
        f"One update of one epoch over {count} samples of {prompt} + {completion} tokens, random weights, at most"
        f" {MICRO_BATCH_TOKENS} tokens a micro-batch, no recomputation. MFU counts the operations of forward and"
        " backward (scripts/gpu/shapes.py) against the dense bfloat16 peak, for FP8 too."
    ]
    return {"title": "The update", "notes": notes, "rows": rows, "failures": []}


def measure_one(name: str, variant: Variant, prompt: int, completion: int, count: int, tiny: bool) -> dict[str, Any]:
    given = samples(SHAPES[name]["vocab_size"], prompt, completion, count)
    loss = LossConfig(epochs=1, max_tokens_per_micro_batch=MICRO_BATCH_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model_config(Path(folder), name)
        with joined_policy(model, variant, init="random") as policy:
            seconds, least, most = timed(lambda: update(policy, given, loss), *((0, 1) if tiny else (2, 5)))
            peak = peak_mib(lambda: update(policy, given, loss))
    tokens = prompt + completion - 1  # the last one is predicted, never read
    flops = model_flops(SHAPES[name], [(tokens, completion)] * count)
    tflops = flops / seconds / 1e12
    limit = peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {
        "shape": name,
        "layers": variant.name,
        "seconds": seconds,
        "least": least,
        "most": most,
        "tokens/s": tokens * count / seconds,
        "TFLOP/s": tflops,
        "MFU": None if limit is None else tflops / limit,
        "peak MiB above weights and optimizer": peak,
    }


def samples(words: int, prompt: int, completion: int, count: int) -> list[Sample]:
    """Random tokens; advantages that differ, in groups of two."""
    tokens = torch.randint(0, words, (count, prompt + completion), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        Sample(
            group=index // 2,
            task="reasoning",
            prompt_ids=tuple(row[:prompt]),
            completion_ids=tuple(row[prompt:]),
            advantage=1.0 if index % 2 else -1.0,
            rollout_logprobs=(-1.0,) * completion,
        )
        for index, row in enumerate(tokens)
    ]
