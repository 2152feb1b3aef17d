"""Log-probabilities of the policy with each kind of layers against transformers in float32, on the same weights."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from policies import Variant, joined_policy, variants
from shapes import SHAPES, write_model_config
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_urpo.policy.packing import TokenSequence, pack

FLOAT32_LIMIT = 1e-3
"""Rounding of some tens of layers in float32 stays below 1e-4; a wrong layer is off by 0.1."""


def measure(tiny: bool) -> dict[str, Any]:
    shape = "tiny" if tiny else "0.5B"
    count, length = (3, 20) if tiny else (8, 512)
    generator = torch.Generator().manual_seed(1)
    rows_of_tokens = torch.randint(0, SHAPES[shape]["vocab_size"], (count, length), generator=generator).tolist()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = write_model_config(Path(folder) / "shape", shape)
        model = Path(folder) / "model"
        with joined_policy(source, Variant("torch", "float32"), init="random") as policy:
            policy.write_model(model, source)
        want = by_transformers(model, rows_of_tokens)
        for variant in (Variant("torch", "float32"), *variants("bfloat16")):
            gap = by_policy(model, variant, rows_of_tokens) - want
            rows.append(
                {
                    "layers": variant.name,
                    "mean difference": float(gap.abs().mean()),
                    "largest": float(gap.abs().max()),
                    "KL estimate (k3)": float((gap.exp() - 1 - gap).mean()),
                }
            )
            if variant.dtype == "float32" and not rows[-1]["largest"] < FLOAT32_LIMIT:
                failures.append(f"{variant.name}: off by {rows[-1]['largest']:.2g}")
    notes = [f"{count} sequences of {length} random tokens, {shape} shape, random weights; float32 transformers is 0."]
    return {"title": "Parity of log-probabilities", "notes": notes, "rows": rows, "failures": failures}


@torch.no_grad()
def by_transformers(model: Path, rows: list[list[int]]) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    parts = []
    for row in rows:
        tokens = torch.tensor(row, device=device)
        logprobs = torch.log_softmax(oracle(tokens[None, :-1]).logits[0].double(), -1)
        parts.append(logprobs.gather(1, tokens[1:, None])[:, 0])
    return torch.cat(parts).cpu()


def by_policy(model: Path, variant: Variant, rows: list[list[int]]) -> Tensor:
    with joined_policy(model, variant, init="weights") as policy:
        sequences = [TokenSequence(tuple(row), 1) for row in rows]
        batch = pack(sequences, policy.alignment, policy.parallel.device)
        return torch.cat(policy.logprobs([batch])).double().cpu()
