"""The scripted server answers in the form of the real one: the same status, keys and types, and what is refused."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import Server
from tests.support.models import COMMON
from tests.support.scripted_server import ScriptedServer

CONTEXT = 256
FLUSH_SECONDS = 60
SAMPLING = {"max_new_tokens": 4, "temperature": 0.0, "stop_token_ids": [], "sampling_seed": 2**62, "top_p": 1.0}
LOADED = {"success": "bool", "message": "str", "num_paused_requests": "int"}
STEPS_OF_AN_UPDATE = [
    "/end_weight_update", "/pause_generation", "/begin_weight_update", "/begin_weight_update", "/end_weight_update",
    "/flush_cache", "/continue_generation",
]  # fmt: skip


@pytest.fixture
def scripted(model: Path) -> Iterator[ScriptedServer]:
    vocab_size = COMMON["vocab_size"]
    assert COMMON["max_position_embeddings"] == CONTEXT
    with ScriptedServer(vocab_size=int(vocab_size), context=CONTEXT, dtype="float32", model_path=str(model)) as started:
        yield started


def ask(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status, and the answer: decoded where it is JSON, else None."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, kind, text = answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        status, kind, text = error.code, error.headers.get_content_type(), error.read()
    return status, json.loads(text) if kind == "application/json" else None


def flush(url: str) -> None:
    """Of a cached prefix an answer would have details. A server that still has a request refuses to forget it."""
    deadline = time.monotonic() + FLUSH_SECONDS
    while ask(url, "/flush_cache", {})[0] != 200:
        assert time.monotonic() < deadline, f"{url} does not flush its cache"
        time.sleep(0.05)


def form(answer: Any) -> Any:
    """The keys and types of an answer, item by item in lists."""
    if isinstance(answer, dict):
        return {key: form(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [form(item) for item in answer]
    return type(answer).__name__


def generate(url: str, prompt: list[int], **sampling: Any) -> tuple[int, Any]:
    """As `ask`, without the text: the project starts servers without a tokenizer, which send none."""
    body = {"input_ids": prompt, "sampling_params": {**SAMPLING, **sampling}, "return_logprob": True}
    status, answer = ask(url, "/generate", body)
    return status, {key: value for key, value in answer.items() if key != "text"} if answer else None


def test_completions(server: Server, scripted: ScriptedServer) -> None:
    for prompt in ([11, 12, 13], [14, 15]):
        finishes = []
        for url in (server.url, scripted.url):
            flush(url)
            _, whole = generate(url, prompt)
            stop = whole["output_ids"][0]
            flush(url)
            _, cut = generate(url, prompt, stop_token_ids=[stop])
            assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
            finishes.append((form(whole), form(cut), whole["meta_info"]["finish_reason"]))
        assert finishes[0] == finishes[1]


def test_what_is_refused(server: Server, scripted: ScriptedServer) -> None:
    limit = ask(server.url, "/server_info")[1]["max_req_input_len"]
    assert ask(scripted.url, "/server_info")[1]["max_req_input_len"] == limit
    assert generate(scripted.url, [11] * (limit - 1), max_new_tokens=1)[0] == 200
    assert generate(server.url, [11] * (limit - 1), max_new_tokens=1)[0] == 200
    for prompt in ([], [11] * limit, [11] * 300):
        (status, real), (our_status, ours) = generate(server.url, prompt), generate(scripted.url, prompt)
        assert (our_status, form(ours)) == (status, form(real)) == (400, {"error": {"message": "str"}})
    assert generate(server.url, [11], nonsense=1) == generate(scripted.url, [11], nonsense=1) == (500, None)


def test_information(server: Server, scripted: ScriptedServer) -> None:
    real, ours = ask(server.url, "/model_info")[1], ask(scripted.url, "/model_info")[1]
    assert real.keys() - ours.keys() == {"embedding"}
    assert form(ours) == form({key: real[key] for key in ours})
    for path in ("/server_info", "/v1/loads"):
        real, ours = ask(server.url, path)[1], ask(scripted.url, path)[1]
        assert subset(form(ours), form(real)), path
    assert ask(server.url, "/health") == ask(scripted.url, "/health") == (200, None)


def subset(ours: Any, real: Any) -> bool:
    """Whether every key of `ours` is in `real`, with values of the same types."""
    if isinstance(ours, dict) and isinstance(real, dict):
        return all(key in real and subset(value, real[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(real, list):
        return all(subset(one, other) for one, other in zip(ours, real, strict=True))
    return bool(ours == real)


def test_updates(server: Server, scripted: ScriptedServer, model: Path) -> None:
    for path in STEPS_OF_AN_UPDATE:
        real, ours = ask(server.url, path, {}), ask(scripted.url, path, {})
        assert ours == real, path
    version = ask(server.url, "/model_info")[1]["weight_version"]
    same = {"new_version": version, "abort_all_requests": False}
    assert ask(server.url, "/update_weight_version", same) == ask(scripted.url, "/update_weight_version", same)
    for folder, status in ((model / "none", 400), (model, 200)):
        body = {"model_path": str(folder), "flush_cache": False}
        for url in (server.url, scripted.url):
            answer = ask(url, "/update_weights_from_disk", body)
            assert (answer[0], form(answer[1])) == (status, LOADED), url
    tensors = {"serialized_named_tensors": ["AAAA"], "flush_cache": False}  # outside of an update
    assert ask(server.url, "/update_weights_from_tensor", tensors)[0] == 400
    assert ask(scripted.url, "/update_weights_from_tensor", tensors)[0] == 400
    assert ask(server.url, "/abort_request", {"abort_all": True}) == ask(scripted.url, "/abort_request", {})
