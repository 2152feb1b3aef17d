"""What the scripted server reads and writes: SGLang 0.5.21's form, and the cues by which it departs from it.

The form is that of a server started with --skip-tokenizer-init, which answers without a text.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

VERSION = "0.5.21"
RESERVED_TOKENS = 6  # of the context, which SGLang keeps for itself
DEFAULT_NEW_TOKENS = 128
FILLER = 3
ABORTED_SHARE = 0.5  # of the tokens of a completion that is broken off by cue

Fate = Literal[
    "answer",
    "crash",  # the connection is broken off instead of an answer
    "half",  # it is broken off in the middle of the answer
    "hang",  # the request is forgotten: nothing comes until the client gives up
    "abort",  # the server breaks the completion off
    "few_logprobs",  # the last token has none
    "foreign_token",  # the last token lies outside the vocabulary
    "too_many_tokens",  # one more than was allowed
    "not_json",
    "other_json",
]
# Every parameter that the project's client sends. SGLang answers an unknown one with a status 500.
SAMPLING_PARAMETERS = {
    "max_new_tokens", "temperature", "stop_token_ids", "sampling_seed", "top_p", "top_k", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a completion."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    seed: int | None

    @property
    def num_tokens(self) -> int:
        """That it may need: the prompt and the longest answer."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Cue:
    """How one request is answered.

    `tokens` end at their first stop token, and get one where they have none and there is room; None is an answer of
    full length. `seconds` pass before the answer beside the time that its tokens take. A `status` other than 200 is
    the whole answer, with `message`. `version` is told instead of that of the server's weights.
    """

    tokens: Sequence[int] | None = None
    seconds: float = 0.0
    fate: Fate = "answer"
    status: int = 200
    message: str = "by cue"
    version: str | None = None


Script = Callable[[int, Asked], Cue]
"""From the number of a request on its server, counted from 0, and the request."""


def as_it_should(number: int, asked: Asked) -> Cue:
    return Cue()


def read_asked(body: Any) -> Asked:
    """Raises LookupError, TypeError or ValueError for a body of another form."""
    sampling = body["sampling_params"]
    unknown = sampling.keys() - SAMPLING_PARAMETERS
    if unknown or body["return_logprob"] is not True:
        raise ValueError(f"unknown sampling parameters {sorted(unknown)}, or no log-probabilities are asked for")
    return Asked(
        prompt_ids=tuple(int(i) for i in body["input_ids"]),
        max_new_tokens=int(sampling.get("max_new_tokens", DEFAULT_NEW_TOKENS)),
        temperature=float(sampling.get("temperature", 1.0)),
        stop_token_ids=tuple(sampling.get("stop_token_ids") or ()),
        seed=sampling.get("sampling_seed"),
    )


def refusal_of(asked: Asked, context: int) -> str | None:
    """Why a server with `context` positions does not take the request; None where it does."""
    length = len(asked.prompt_ids)
    if length == 0:
        return "input_ids cannot be empty."
    if length >= context - RESERVED_TOKENS:
        return f"The input ({length} tokens) is longer than the model's context length ({context} tokens)."
    return None


def completion_of(asked: Asked, cue: Cue, vocab_size: int) -> tuple[int, ...]:
    """The tokens of the answer, wrong where the cue's fate says so."""
    full = (FILLER,) * asked.max_new_tokens if cue.tokens is None else (*cue.tokens, *asked.stop_token_ids[:1])
    tokens = full[: asked.max_new_tokens]
    stop = next((place for place, i in enumerate(tokens) if i in asked.stop_token_ids), len(tokens))
    tokens = tokens[: stop + 1]
    if cue.fate == "foreign_token":
        return (*tokens[:-1], vocab_size)
    if cue.fate == "too_many_tokens":
        return (*tokens, *(FILLER,) * (asked.max_new_tokens + 1 - len(tokens)))
    return tokens


def finish_of(asked: Asked, tokens: Sequence[int]) -> dict[str, Any]:
    if tokens and tokens[-1] in asked.stop_token_ids:
        return {"type": "stop", "matched": tokens[-1]}
    return {"type": "length", "length": len(tokens)}


ABORTED = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}


def logprob(token: int) -> float:
    """Told of `token`: another one for each of seven, so that a shift by one place is seen."""
    return -(1 + token % 7) / 4


def answer_of(asked: Asked, tokens: Sequence[int], finish: dict[str, Any], version: str, seconds: float) -> Any:
    """The answer to /generate."""
    return {
        "output_ids": list(tokens),
        "meta_info": {
            "id": uuid.uuid4().hex,
            "finish_reason": finish,
            "prompt_tokens": len(asked.prompt_ids),
            "weight_version": version,
            "num_retractions": 0,
            "input_token_logprobs": [],
            "output_token_logprobs": [[logprob(i), i, None] for i in tokens],
            "output_token_logprobs_length": len(tokens),
            "reasoning_tokens": 0,
            "completion_tokens": len(tokens),
            "cached_tokens": 0,
            "weight_versions": [{"version": version, "start": 0, "end": len(tokens)}],
            "cached_tokens_details": None,
            "dp_rank": None,
            "e2e_latency": seconds,
            "response_sent_to_client_ts": time.time(),
        },
    }


def bytes_of(answer: Any, fate: Fate) -> bytes:
    """The answer as it is sent, wrong where the cue's fate says so."""
    if fate == "few_logprobs":
        answer["meta_info"]["output_token_logprobs"].pop()
    if fate == "other_json":
        answer = {"object": "list", "data": []}
    text = json.dumps(answer).encode()
    return text[: len(text) // 2] if fate == "not_json" else text


def model_info(model_path: str, version: str) -> dict[str, Any]:
    """The answer to /model_info, without the details of embedding models."""
    return {
        "model_path": model_path,
        "served_model_name": model_path,
        "tokenizer_path": model_path,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": version,
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
    }


def server_info(model_path: str, version: str, dtype: str, context: int) -> dict[str, Any]:
    """The part of the answer to /server_info that tells of the model."""
    return {
        "version": VERSION,
        "model_path": model_path,
        "weight_version": version,
        "dtype": dtype,
        "tp_size": 1,
        "max_req_input_len": context - RESERVED_TOKENS,
    }
