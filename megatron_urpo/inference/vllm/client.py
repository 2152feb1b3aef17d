"""Token ids in, token ids, log-probabilities and weight versions out: one vLLM server over HTTP (0.32 is tested).

`/inference/v1/generate` is asked, not the OpenAI routes: it speaks token ids alone, and tells the version of the
weights that wrote each token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.client import BadAnswer
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.vllm.update import DESCRIBE, RPC, VLLMUpdates
from megatron_urpo.protocols import ServerGone, UpdatableServer
from megatron_urpo.types import Completion, FinishReason, GenerationRequest, VersionSpan

GENERATE = "/inference/v1/generate"
# Every parameter that shapes the distribution, so that no default of the server or of the model's folder does. vLLM
# ignores a parameter that it does not know.
WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
MAX_SEED = 2**63


@dataclass(frozen=True)
class VLLMInfo:
    """Of a server: `context` is the longest prompt with its answer, `cache_tokens` of all requests together."""

    version: str
    model: str
    dtype: str
    quantization: str | None
    logprobs_mode: str
    vocab_size: int
    tensor: int
    context: int
    cache_tokens: int
    device: str
    releases_memory: bool


class VLLMClient:
    """Implements `fleet.client.Client`. Its coroutines belong to `background`'s loop."""

    def __init__(
        self,
        url: str,
        background: BackgroundLoop,
        *,
        tensor: int,
        stop_token_ids: Sequence[int],
        vocab_size: int,
        update_seconds: float,
        accept: Callable[[str, VLLMInfo], None],
    ) -> None:
        self._http = HttpServer(url)
        self._accept, self._description = accept, "vllm"
        self._stop_token_ids, self._vocab_size = list(stop_token_ids), vocab_size
        self._updates = VLLMUpdates(HttpServer(url), background, tensor=tensor, seconds=update_seconds)

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def updates(self) -> UpdatableServer:
        return self._updates

    async def generate(self, request: GenerationRequest, index: int, seconds: float) -> Completion:
        """See `fleet.client.Client`. The server follows the seed as far as its batches repeat."""
        sampling = {
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stop_token_ids": self._stop_token_ids,
            "ignore_eos": True,  # the run's stop tokens are the only ones
            "seed": (request.seed + index) % MAX_SEED,
            "logprobs": 0,  # of the sampled token alone
            **WHOLE_DISTRIBUTION,
        }
        answer = await self._http.post(
            GENERATE, {"token_ids": list(request.prompt_ids), "sampling_params": sampling}, seconds
        )
        try:
            completion = read_completion(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise BadAnswer(f"{self.url}{GENERATE}: {type(error).__name__}: {error}") from None
        if len(completion.token_ids) > request.max_new_tokens:
            raise BadAnswer(
                f"{self.url}{GENERATE}: {len(completion.token_ids)} tokens, {request.max_new_tokens} were allowed"
            )
        wrong = [i for i in completion.token_ids if not 0 <= i < self._vocab_size]
        if wrong:
            raise BadAnswer(f"{self.url}{GENERATE}: token {wrong[0]} is outside the vocabulary of {self._vocab_size}")
        return completion

    async def check(self, seconds: float) -> None:
        """`/health` answers before the model does, so a token is asked for."""
        body = {"token_ids": [0], "sampling_params": {"max_tokens": 1, "temperature": 0.0}}
        await self._http.post(GENERATE, body, seconds)

    async def capacity(self, seconds: float) -> int:
        """Tokens that its cache holds. Raises what `accept` raises of a server that cannot serve this run."""
        answer = await self._http.post(RPC, DESCRIBE, seconds)
        try:
            info = read_info(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise ServerGone(f"{self.url}{RPC} is not vLLM's: {type(error).__name__}: {error}") from None
        self._accept(self.url, info)
        self._description = f"vllm {info.version}, {info.dtype}, {info.tensor} tensor-parallel ranks"
        return info.cache_tokens

    def describe(self) -> str:
        return self._description

    async def close(self) -> None:
        await self._http.close()
        await self._updates.close()


def read_completion(answer: Any) -> Completion:
    """vLLM's answer to a request for one completion. Raises LookupError, TypeError or ValueError for anything else."""
    (choice,) = answer["choices"]
    token_ids, content = tuple(choice["token_ids"]), choice["logprobs"]["content"] or []
    if [entry["token_id"] for entry in content] != list(token_ids):
        raise ValueError(f"{len(content)} log-probabilities do not belong to the {len(token_ids)} tokens")
    logprobs = tuple(float(entry["logprob"]) for entry in content)
    if not all(isinstance(i, int) for i in token_ids) or not all(math.isfinite(p) for p in logprobs):
        raise ValueError("a token that is no number, or a log-probability that is not finite")
    spans = tuple(
        VersionSpan(read_version(span["version"]), int(span["start"]), int(span["end"]))
        for span in choice["weight_versions"]
    )
    return Completion(token_ids, logprobs, FINISH_REASONS[choice["finish_reason"]], spans)


def read_version(text: Any) -> int:
    """-1 for weights that came from no update of ours, such as those a server was started with."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else -1


def read_info(answer: Any) -> VLLMInfo:
    """What the first rank's `urpo_describe` told. Raises LookupError, TypeError or ValueError for anything else."""
    return VLLMInfo(**answer["results"][0])
