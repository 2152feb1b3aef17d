"""The default engine: transformers' own model in this process, fed with the policy's weights.

**Determinism.** The same requests give the same completions bit for bit, although coroutines run in any order and
verification in other processes finishes at random times:

* Batches are formed from the *set* of waiting requests, sorted by `order`; arrival time plays no part.
* That set is itself fixed. Before a batch is formed, the driver yields to the event loop until no new request
  appears, so every coroutine has run until it waits either for a completion or for something outside this process.
  Those that wait outside (the verifier) ask for no completion afterwards: what is asked next depends on completions
  alone. A caller that breaks this rule (asks the engine after waiting for a clock, a file, another process) gives
  up bit-for-bit repeatability, nothing else.
* One batch runs at a time and its results are handed out before the next is formed, so the requests that they
  trigger compete by `order` with those that still wait.
* Each completion draws from its own stream (`sampling.py`).

The event loop is blocked while a batch is decoded.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_urpo.inference.batching import Row, plan_batch
from megatron_urpo.inference.decode import Decoded, decode_batch
from megatron_urpo.inference.sampling import SEED_BITS
from megatron_urpo.inference.weights import stage_weights
from megatron_urpo.types import Completion, GenerationRequest, VersionSpan

# A coroutine woken by a result passes through a handful of callbacks (futures, tasks, gathers) before it asks again.
QUIET_TURNS = 16


@dataclass(eq=False)
class _Pending:
    """A request whose completions are still being written."""

    request: GenerationRequest
    future: "asyncio.Future[tuple[Completion, ...]]"
    done: dict[int, Completion] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        return [Row(self.request, i) for i in range(self.request.num_completions) if i not in self.done]


class EmbeddedEngine:
    """Implements `protocols.Engine` on one device.

    The model is built from `config.json` alone; its weights arrive through `update_weights`. `stopping` is looked at
    between tokens, since nothing else runs in this thread meanwhile: requests under way then raise Abandoned.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        stop_token_ids: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        max_batch_tokens: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        if not stop_token_ids:
            raise ValueError("stop_token_ids: is empty; the tokenizer must name the token that ends an answer")
        model_config = AutoConfig.from_pretrained(model_path)
        other = set(getattr(model_config, "layer_types", None) or ()) - {"full_attention"}
        if other:
            raise ValueError(
                f"{model_path}/config.json: layer_types has {', '.join(sorted(other))}; the embedded engine knows full"
                " attention only"
            )
        # The random weights that transformers draws are overwritten; the caller's random state must not notice.
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
        self._model = model.to(device).eval().requires_grad_(False)
        self._context = int(model_config.max_position_embeddings)
        self._vocab_size = int(model_config.vocab_size)
        self._stop_token_ids = tuple(stop_token_ids)
        self._max_batch_tokens, self._stopping = max_batch_tokens, stopping
        self._dtype = dtype
        self._version = -1
        self._pending: list[_Pending] = []
        self._driver: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """Version of the loaded weights; -1 before the first update."""
        return self._version

    def update_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes a complete set of weights, or raises ValueError and keeps the old ones."""
        staged = stage_weights(self._model, tensors)
        with torch.no_grad():
            for target, value in staged:
                target.copy_(value)
        self._version = version

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Completions by index. Raises ValueError for a request that the model cannot serve."""
        self._check(request)
        loop = asyncio.get_running_loop()
        pending = _Pending(request, loop.create_future())
        self._pending.append(pending)
        # A driver left by an event loop that was stopped half way is dead with it.
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._pending = [pending]
            self._driver = loop.create_task(self._drive())
        return await pending.future

    def describe(self) -> str:
        return f"embedded, transformers {transformers.__version__}, {self._dtype}".replace("torch.", "")

    def take_counts(self) -> dict[str, float]:
        """Nothing can happen to an engine in this process that would not end it."""
        return {}

    def close(self) -> None:
        """Frees the weights; the engine cannot be used afterwards."""
        self._pending.clear()
        self._model = None

    async def _drive(self) -> None:
        """Forms and decodes batches until nothing waits."""
        while self._pending:
            await self._until_quiet()
            # A caller that was cancelled wants no completions.
            self._pending = [p for p in self._pending if not p.future.done()]
            if not self._pending:
                return
            try:
                self._run_batch()
            except Exception as error:
                # The batch is lost, and with it every request that may have had a row in it.
                for pending in self._pending:
                    pending.future.set_exception(error)
                self._pending = []
                return
            self._hand_out()

    async def _until_quiet(self) -> None:
        known, quiet = len(self._pending), 0
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._pending) == known else 0
            known = len(self._pending)

    def _run_batch(self) -> None:
        owners = {(id(p.request), row.index): p for p in self._pending for row in p.rows()}
        batch = plan_batch([row for p in self._pending for row in p.rows()], self._max_batch_tokens)
        answers = decode_batch(self._model, batch, self._stop_token_ids, stopping=self._stopping)
        for row, decoded in zip(batch, answers, strict=True):
            owners[id(row.request), row.index].done[row.index] = self._completion(decoded)

    def _hand_out(self) -> None:
        waiting = []
        for pending in self._pending:
            if len(pending.done) == pending.request.num_completions:
                pending.future.set_result(tuple(pending.done[i] for i in range(len(pending.done))))
            else:
                waiting.append(pending)
        self._pending = waiting

    def _completion(self, decoded: Decoded) -> Completion:
        return Completion(
            token_ids=decoded.token_ids,
            logprobs=decoded.logprobs,
            finish_reason="stop" if decoded.stopped else "length",
            spans=(VersionSpan(self._version, 0, len(decoded.token_ids)),),
        )

    def _check(self, request: GenerationRequest) -> None:
        """Raises before the request can reach a batch, so that it harms no other."""
        if self._model is None or self._version < 0:
            raise RuntimeError("the engine has no weights: call update_weights before generate, and not after close")
        prompt, total = len(request.prompt_ids), len(request.prompt_ids) + request.max_new_tokens
        if prompt == 0:
            raise ValueError("prompt_ids: is empty; a completion needs at least one token to continue")
        if min(request.num_completions, request.max_new_tokens) < 1:
            raise ValueError(
                f"num_completions {request.num_completions}, max_new_tokens {request.max_new_tokens}: both must be at"
                " least 1"
            )
        if total > self._context:
            raise ValueError(
                f"prompt_ids: {prompt} tokens + max_new_tokens {request.max_new_tokens} = {total}, beyond the model's"
                f" context of {self._context}; shorten the prompt or lower max_new_tokens"
            )
        wrong = [i for i in request.prompt_ids if not 0 <= i < self._vocab_size]
        if wrong:
            raise ValueError(f"prompt_ids: token {wrong[0]} is outside the model's vocabulary of {self._vocab_size}")
        if not 0 <= request.seed < 2**SEED_BITS:
            raise ValueError(f"seed: {request.seed} is not an unsigned {SEED_BITS}-bit number")
        if not request.temperature >= 0:
            raise ValueError(f"temperature: {request.temperature} is below 0; 0 is greedy")
