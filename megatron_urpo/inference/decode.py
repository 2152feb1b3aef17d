"""Lock-step decoding of one batch with a key/value cache, by transformers' own model.

Each distinct prompt is read once, left-padded to the longest, and its cache is copied to the rows that continue it.
Then all rows take one token a step; rows that are done leave the batch when enough of them have gathered to pay for
the copy of the cache. With a small model a step is a few hundred tiny operators, so the step does nothing but the
forward pass, the choice of tokens and one look at which rows are done.

Shapes: U distinct prompts, B rows now in the batch, R rows of the batch at its start, P padded prompt length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_urpo.inference.batching import Row
from megatron_urpo.inference.kv_cache import PreallocatedCache
from megatron_urpo.inference.sampling import choose_tokens, uniforms
from megatron_urpo.protocols import Abandoned

# Copying the cache of the rows that go on costs about one step's attention: below this share of live rows it pays.
COMPACT_BELOW = 0.75
# Padded prompts need a mask of P x P entries each; long ones are read a few at a time to bound it.
MAX_MASK_ENTRIES = 2**26


@dataclass(frozen=True, slots=True)
class Decoded:
    """One row's tokens (a stop token, when reached, is the last) and their natural log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


@torch.inference_mode()
def decode_batch(
    model: Any,
    rows: Sequence[Row],
    stop_token_ids: Sequence[int],
    max_mask_entries: int = MAX_MASK_ENTRIES,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Decoded]:
    """Continues every row until a stop token or its own `max_new_tokens`; results in the order of `rows`.

    Raises Abandoned where `stopping` says so between two tokens.
    """
    device = model.device
    prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
    place = {prompt: u for u, prompt in enumerate(prompts)}
    prompt_of_R = torch.tensor([place[row.request.prompt_ids] for row in rows], device=device)
    num_steps = max(row.max_new_tokens for row in rows)

    logits_UV, mask_UP, cache = _prefill(model, prompts, num_steps, max_mask_entries)
    cache.batch_select_indices(prompt_of_R)
    logits_BV = logits_UV[prompt_of_R]
    position_B1 = mask_UP.sum(-1)[prompt_of_R][:, None]
    attention = _Attention(mask_UP[prompt_of_R], num_steps)

    budget_B = torch.tensor([row.max_new_tokens for row in rows], device=device)
    uniforms_BT = torch.from_numpy(_all_uniforms(rows, num_steps)).to(device)
    temperatures_B = _temperatures(rows, device)
    stop_ids = torch.tensor(list(stop_token_ids), dtype=torch.long, device=device)
    tokens_RT = torch.zeros(len(rows), num_steps, dtype=torch.long, device=device)
    logprobs_RT = torch.zeros(len(rows), num_steps, dtype=torch.float64, device=device)
    length_R = torch.zeros(len(rows), dtype=torch.long, device=device)
    stopped_R = torch.zeros(len(rows), dtype=torch.bool, device=device)
    row_of_B = torch.arange(len(rows), device=device)
    live_B = torch.ones(len(rows), dtype=torch.bool, device=device)

    for step in range(num_steps):
        if stopping():
            raise Abandoned("told to stop")
        token_B, logprob_B = choose_tokens(logits_BV, temperatures_B, uniforms_BT[:, step])
        tokens_RT[row_of_B, step] = token_B
        logprobs_RT[row_of_B, step] = logprob_B
        stop_B = torch.isin(token_B, stop_ids)
        ends_B = live_B & (stop_B | (budget_B == step + 1))
        if bool(ends_B.any()):
            length_R[row_of_B[ends_B]] = step + 1
            stopped_R[row_of_B[ends_B]] = stop_B[ends_B]
            live_B = live_B & ~ends_B
            num_live = int(live_B.sum())
            if num_live == 0:
                break
            if num_live <= COMPACT_BELOW * len(live_B):
                keep = live_B.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                attention.select(keep)
                token_B, position_B1, budget_B = token_B[keep], position_B1[keep], budget_B[keep]
                uniforms_BT, row_of_B, live_B = uniforms_BT[keep], row_of_B[keep], live_B[keep]
                temperatures_B = None if temperatures_B is None else temperatures_B[keep]
        logits_BV = _forward(model, token_B[:, None], attention.step(step), position_B1, cache)
        position_B1 = position_B1 + 1
    return _gather(tokens_RT, logprobs_RT, length_R, stopped_R)


class _Attention:
    """Which cached positions a row may see: its prompt without the padding, and everything decoded so far."""

    def __init__(self, mask_BP: torch.Tensor, num_steps: int) -> None:
        self.prompt_length = mask_BP.shape[1]
        decoded = mask_BP.new_ones(mask_BP.shape[0], num_steps)
        # Without padding no mask is needed, and attention without one is faster.
        self.mask = None if bool(mask_BP.all()) else torch.cat([mask_BP, decoded], 1)[:, None, None]

    def step(self, step: int) -> torch.Tensor | None:
        return None if self.mask is None else self.mask[..., : self.prompt_length + step + 1]

    def select(self, keep: torch.Tensor) -> None:
        self.mask = None if self.mask is None else self.mask[keep]


def _prefill(
    model: Any, prompts: Sequence[tuple[int, ...]], num_steps: int, max_mask_entries: int
) -> tuple[torch.Tensor, torch.Tensor, PreallocatedCache]:
    """Reads the prompts: logits of the next token (U x V), which positions are no padding (U x P), the cache."""
    longest = max(map(len, prompts))
    ids_UP = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_UP = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for u, prompt in enumerate(prompts):
        ids_UP[u, longest - len(prompt) :] = torch.tensor(prompt)
        mask_UP[u, longest - len(prompt) :] = True
    ids_UP, mask_UP = ids_UP.to(model.device), mask_UP.to(model.device)
    logits, caches = [], []
    chunk = max(1, max_mask_entries // longest**2)
    for start in range(0, len(prompts), chunk):
        ids, mask = ids_UP[start : start + chunk], mask_UP[start : start + chunk]
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        caches.append(PreallocatedCache(model.config.num_hidden_layers, longest + num_steps))
        logits.append(_forward(model, ids, _causal_mask(mask), positions, caches[-1]))
    caches[0].append_rows(caches[1:])
    return torch.cat(logits), mask_UP, caches[0]


def _causal_mask(mask_UP: torch.Tensor) -> torch.Tensor | None:
    """U x 1 x P x P, who sees whom; None without padding, where the model's own causal attention does."""
    if bool(mask_UP.all()):
        return None
    ones = mask_UP.new_ones(mask_UP.shape[1], mask_UP.shape[1])
    # Padding sees itself: a query that sees nothing would be NaN, and NaN survives a weight of zero.
    itself = torch.eye(mask_UP.shape[1], dtype=torch.bool, device=mask_UP.device)
    return ((ones.tril() & mask_UP[:, None, :]) | itself)[:, None]


def _forward(
    model: Any,
    ids: torch.Tensor,
    attention: torch.Tensor | None,
    positions: torch.Tensor,
    cache: PreallocatedCache,
) -> torch.Tensor:
    """Logits after the last of `ids`, rows x V; keys and values go into `cache`."""
    output = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _all_uniforms(rows: Sequence[Row], num_steps: int) -> np.ndarray:
    """Rows x steps; a greedy row needs none."""
    drawn = np.zeros((len(rows), num_steps))
    for r, row in enumerate(rows):
        if row.request.temperature > 0:
            drawn[r, : row.max_new_tokens] = uniforms(row.request.seed, row.index, row.max_new_tokens)
    return drawn


def _temperatures(rows: Sequence[Row], device: torch.device) -> torch.Tensor | None:
    values = [row.request.temperature for row in rows]
    if all(value == 1.0 for value in values):
        return None
    return torch.tensor(values, dtype=torch.float64, device=device)


def _gather(
    tokens_RT: torch.Tensor, logprobs_RT: torch.Tensor, length_R: torch.Tensor, stopped_R: torch.Tensor
) -> list[Decoded]:
    columns = (tokens_RT.tolist(), logprobs_RT.tolist(), length_R.tolist(), stopped_R.tolist())
    return [
        Decoded(tuple(tokens[:length]), tuple(logprobs[:length]), stopped)
        for tokens, logprobs, length, stopped in zip(*columns, strict=True)
    ]
