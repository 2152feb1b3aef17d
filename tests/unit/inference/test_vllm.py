"""What is asked of vLLM, what its answers have to look like, and which servers a run refuses before it starts."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.config import Config, ConfigError, check_config
from megatron_urpo.config.engine import VLLMServersConfig
from megatron_urpo.inference.connect import check_engine
from megatron_urpo.inference.ports import choose_ports
from megatron_urpo.inference.vllm.accept import check_info
from megatron_urpo.inference.vllm.client import VLLMInfo, read_completion, read_info, read_version
from megatron_urpo.inference.vllm.launch import EXTENSION, EXTENSION_CLASS, VLLMLauncher
from tests.support.rollout import make_config
from tests.support.scripted_server import ScriptedServer

TELLS = VLLMInfo(
    version="0.32.0",
    model="/models/qwen",
    dtype="bfloat16",
    quantization=None,
    logprobs_mode="processed_logprobs",
    vocab_size=127,
    tensor=1,
    context=2016,
    cache_tokens=4096,
    device="cuda",
    releases_memory=False,
)


def vllm(servers: dict[str, Any], **sections: dict[str, Any]) -> Config:
    return make_config(rollout={"engine": "vllm", "vllm": servers}, **sections)


def test_command_of_a_server() -> None:
    config = VLLMServersConfig(tensor=2, flags={"max-num-seqs": 8, "enforce-eager": True, "async-scheduling": False})
    words = VLLMLauncher(config, Path("/models/qwen"), index=1, port=30001).command()
    assert words == [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/qwen", "--host", "127.0.0.1",
        "--port", "30001", "--dtype", "bfloat16", "--tensor-parallel-size", "2",
        "--logprobs-mode", "processed_logprobs", "--worker-extension-cls", "megatron_urpo_worker.WeightUpdates",
        "--max-num-seqs", "8", "--enforce-eager", "--tokens-only",
    ]  # fmt: skip


def test_environment_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    config = VLLMServersConfig(tensor=2, first_gpu=4, environment={"A": "b"})
    given = VLLMLauncher(config, Path("m"), index=1, port=1).environment()
    assert given == {
        "A": "b",
        "PYTHONPATH": f"{EXTENSION}{os.pathsep}/inherited",
        "VLLM_SERVER_DEV_MODE": "1",
        "CUDA_VISIBLE_DEVICES": "6,7",
    }
    config = VLLMServersConfig(environment={"PYTHONPATH": "/own"})
    given = VLLMLauncher(config, Path("m"), index=0, port=1).environment()
    assert given == {"PYTHONPATH": f"{EXTENSION}{os.pathsep}/own", "VLLM_SERVER_DEV_MODE": "1"}


def test_the_extension_lies_where_servers_are_told_to_look() -> None:
    module, name = EXTENSION_CLASS.split(".")
    assert f"class {name}:" in (EXTENSION / f"{module}.py").read_text()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"rollout\.vllm\.port: {port} cannot be listened on"):
            choose_ports(VLLMServersConfig(port=port), "rollout.vllm")


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"flags": {"--mem": 1}}, r"rollout\.vllm\.flags: '--mem' is no name of a flag"),
        ({"flags": {"tensor-parallel-size": 2}}, r"is set by rollout\.vllm\.tensor"),
        ({"flags": {"tokens-only": True}}, "is set by every server that a run starts"),
        ({"urls": ["127.0.0.1:30000"]}, r"rollout\.vllm\.urls: .* is no address"),
        ({"urls": ["http://a:1", "http://a:1"]}, r"rollout\.vllm\.urls: names a server twice"),
    ],
)
def test_values_that_cannot_work(servers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(vllm(servers))


def test_flags_of_the_other_program_are_its_own() -> None:
    check_config(vllm({"flags": {"skip-server-warmup": True}}))


def test_a_server_that_fits() -> None:
    check_info(vllm({}), "http://a:1", TELLS)


@pytest.mark.parametrize(
    ("tells", "message"),
    [
        ({"version": "0.31.2"}, r"is vLLM 0\.31\.2, 0\.32 is the oldest"),
        ({"tensor": 2}, r"rollout\.vllm\.tensor: 1, but http://a:1 runs with 2"),
        ({"dtype": "float32"}, r"rollout\.vllm\.dtype: bfloat16, but http://a:1 runs with float32"),
        ({"quantization": "fp8"}, r"quantizes its weights \(fp8\)"),
        ({"logprobs_mode": "raw_logprobs"}, r"tells raw_logprobs, .* --logprobs-mode processed_logprobs"),
        ({"context": 2015}, r"referee\.max_prompt_tokens: 2000 \+ .* = 2016, but .* a context of 2015"),
    ],
)
def test_a_server_that_cannot_serve_the_run(tells: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_info(vllm({}), "http://a:1", replace(TELLS, **tells))
    assert "\n" not in str(caught.value)


def test_a_server_of_another_kind() -> None:
    with ScriptedServer() as scripted, pytest.raises(ConfigError, match="is not a vLLM server whose weights") as caught:
        check_engine(vllm({"urls": [scripted.url]}), 127)
    assert "\n" not in str(caught.value)
    assert EXTENSION_CLASS in str(caught.value)


def test_nobody_there() -> None:
    (port,) = choose_ports(VLLMServersConfig(), "rollout.vllm")
    with pytest.raises(ConfigError, match=r"rollout\.vllm\.urls: .* does not answer"):
        check_engine(vllm({"urls": [f"http://127.0.0.1:{port}"]}), 127)


@pytest.mark.parametrize(
    ("text", "version"), [("12", 12), ("0", 0), ("default", -1), ("", -1), ("-3", -1), (None, -1), ("1e3", -1)]
)
def test_version_of_weights(text: object, version: int) -> None:
    assert read_version(text) == version


def choice(**changes: Any) -> dict[str, Any]:
    return {
        "token_ids": [5, 6],
        "logprobs": {"content": [{"token_id": 5, "logprob": -0.5}, {"token_id": 6, "logprob": -0.25}]},
        "finish_reason": "stop",
        "weight_versions": [{"version": "3", "start": 0, "end": 2}],
        **changes,
    }


def test_an_answer() -> None:
    completion = read_completion({"choices": [choice()]})
    assert (completion.token_ids, completion.logprobs, completion.finish_reason) == ((5, 6), (-0.5, -0.25), "stop")
    assert [(span.version, span.start, span.end) for span in completion.spans] == [(3, 0, 2)]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [choice(), choice()]},
        {"choices": [choice(token_ids=[5])]},
        {"choices": [choice(token_ids=None)]},
        {"choices": [choice(logprobs=None)]},
        {"choices": [choice(token_ids=[5], logprobs={"content": [{"token_id": 5, "logprob": None}]})]},
        {"choices": [choice(token_ids=[5], logprobs={"content": [{"token_id": 5, "logprob": float("nan")}]})]},
        {"choices": [choice(finish_reason="tired")]},
        {"choices": [choice(weight_versions=None)]},
        {"choices": [choice(weight_versions=[{"version": "3"}])]},
    ],
)
def test_an_answer_of_another_form_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        read_completion(answer)


@pytest.mark.parametrize("answer", [{}, {"results": []}, {"results": [{"version": "0.32.0"}]}, {"results": [None]}])
def test_another_description_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        read_info(answer)
