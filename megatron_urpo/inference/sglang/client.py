"""Token ids in, token ids and their log-probabilities out: one SGLang server over HTTP (0.5.19 or newer)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.fleet.client import BadAnswer
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.sglang.update import SGLangUpdates
from megatron_urpo.protocols import ServerGone, UpdatableServer
from megatron_urpo.types import Completion, FinishReason, GenerationRequest, VersionSpan

# Every parameter that shapes the distribution, so that no default of the server or of the model's folder does.
WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
MAX_SEED = 2**63


@dataclass(frozen=True)
class SGLangInfo:
    """Of a server: `max_prompt_tokens` alone, `max_tokens` with the answer, `cache_tokens` of all requests together."""

    version: str
    dtype: str
    tensor: int
    max_prompt_tokens: int
    max_tokens: int
    cache_tokens: int
    device: str
    releases_memory: bool


class SGLangClient:
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
        accept: Callable[[str, "SGLangInfo"], None],
    ) -> None:
        self._http = HttpServer(url)
        self._accept, self._description = accept, "sglang"
        self._stop_token_ids, self._vocab_size = list(stop_token_ids), vocab_size
        self._updates = SGLangUpdates(HttpServer(url), background, tensor=tensor, seconds=update_seconds)

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def updates(self) -> UpdatableServer:
        return self._updates

    async def generate(self, request: GenerationRequest, index: int, seconds: float) -> Completion:
        """See `fleet.client.Client`. The server follows the seed only with --enable-deterministic-inference."""
        body = {
            "input_ids": list(request.prompt_ids),
            "sampling_params": {
                "max_new_tokens": request.max_new_tokens,
                "temperature": request.temperature,
                "stop_token_ids": self._stop_token_ids,
                "sampling_seed": (request.seed + index) % MAX_SEED,
                **WHOLE_DISTRIBUTION,
            },
            "return_logprob": True,
        }
        answer = await self._http.post("/generate", body, seconds)
        try:
            completion = read_completion(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise BadAnswer(f"{self.url}/generate: {type(error).__name__}: {error}") from None
        if len(completion.token_ids) > request.max_new_tokens:
            raise BadAnswer(
                f"{self.url}/generate: {len(completion.token_ids)} tokens, {request.max_new_tokens} were allowed"
            )
        wrong = [i for i in completion.token_ids if not 0 <= i < self._vocab_size]
        if wrong:
            raise BadAnswer(f"{self.url}/generate: token {wrong[0]} is outside the vocabulary of {self._vocab_size}")
        return completion

    async def check(self, seconds: float) -> None:
        await self._http.get("/health", seconds)

    async def capacity(self, seconds: float) -> int:
        """Tokens that its cache holds. Raises what `accept` raises of a server that cannot serve this run."""
        answer = await self._http.get("/server_info", seconds)
        try:
            info = read_info(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise ServerGone(f"{self.url}/server_info is not SGLang's: {type(error).__name__}: {error}") from None
        self._accept(self.url, info)
        self._description = f"sglang {info.version}, {info.dtype}, {info.tensor} tensor-parallel ranks"
        return info.cache_tokens

    def describe(self) -> str:
        return self._description

    async def close(self) -> None:
        await self._http.close()
        await self._updates.close()


def read_completion(answer: Any) -> Completion:
    """SGLang's answer to one request. Raises LookupError, TypeError or ValueError for anything else."""
    meta = answer["meta_info"]
    token_ids = tuple(answer["output_ids"])
    pairs = meta["output_token_logprobs"]
    if [pair[1] for pair in pairs] != list(token_ids):
        raise ValueError(f"{len(pairs)} log-probabilities do not belong to the {len(token_ids)} tokens")
    logprobs = tuple(float(pair[0]) for pair in pairs)
    if not all(isinstance(i, int) for i in token_ids) or not all(math.isfinite(p) for p in logprobs):
        raise ValueError("a token that is no number, or a log-probability that is not finite")
    return Completion(
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=FINISH_REASONS[meta["finish_reason"]["type"]],
        spans=tuple(
            VersionSpan(read_version(span["version"]), int(span["start"]), int(span["end"]))
            for span in meta["weight_versions"]
        ),
    )


def read_version(text: Any) -> int:
    """-1 for weights that came from no update of ours, such as those a server was started with."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else -1


def read_info(answer: Any) -> SGLangInfo:
    """SGLang's /server_info. Raises LookupError, TypeError or ValueError for anything else.

    It tells one limit, six below the context; observed of 0.5.21: a prompt has to be shorter than that, and an answer
    is cut, without a word, two positions before the context ends.
    """
    limit = int(answer["max_req_input_len"])
    return SGLangInfo(
        version=str(answer["version"]),
        dtype=str(answer["dtype"]),
        tensor=int(answer["tp_size"]),
        max_prompt_tokens=limit - 1,
        max_tokens=limit + 4,
        cache_tokens=int(answer["max_total_num_tokens"]),
        device=str(answer["device"]),
        releases_memory=answer["enable_memory_saver"] is True,
    )
