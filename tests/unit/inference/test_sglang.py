"""What is asked of SGLang, and which servers a run refuses before it starts."""

import socket
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.config import ConfigError, check_config
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.inference import ports
from megatron_urpo.inference.connect import check_engine
from megatron_urpo.inference.ports import choose_ports, free_ports, kernel_range, outside
from megatron_urpo.inference.sglang.client import read_completion, read_version
from megatron_urpo.inference.sglang.launch import SGLangLauncher
from tests.support.models import make_model
from tests.support.rollout import make_config
from tests.support.scripted_fleet import scripted_config
from tests.support.scripted_server import ScriptedServer


def test_command_of_a_server() -> None:
    config = ServersConfig(
        tensor=2, first_gpu=4, flags={"mem-fraction-static": 0.8, "enable-metrics": True, "disable-radix-cache": False}
    )
    words = SGLangLauncher(config, Path("/models/qwen"), index=1, port=30001).command()
    assert words == [
        sys.executable, "-m", "sglang.launch_server", "--model-path", "/models/qwen", "--host", "127.0.0.1",
        "--port", "30001", "--dtype", "bfloat16", "--tp-size", "2", "--base-gpu-id", "6",
        "--mem-fraction-static", "0.8", "--enable-metrics", "--skip-tokenizer-init", "--skip-server-warmup",
    ]  # fmt: skip


def test_ports() -> None:
    free = choose_ports(ServersConfig(num_servers=3), "rollout.sglang")
    assert len(set(free)) == 3
    first, last = kernel_range()
    assert not any(first <= port <= last for port in free)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"rollout\.sglang\.port: {port} cannot be listened on"):
            choose_ports(ServersConfig(port=port), "rollout.sglang")


def test_free_ports_are_no_taken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(ports, "MAX_TRIED", 2)
        port = taken.getsockname()[1]
        (other,) = free_ports(1)
        monkeypatch.setattr(ports, "PORTS", [port, other])
        assert free_ports(1) == [other]
        with pytest.raises(ConfigError, match="of 2 ports 1 are free, 2 are needed"):
            free_ports(2)


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ((32768, 60999), range(10000, 20000)),
        ((15000, 60999), range(10000, 15000)),
        ((1024, 18000), range(18001, 20000)),
        ((1024, 65535), range(10000, 20000)),
    ],
)
def test_what_the_kernel_hands_out_is_left_to_it(taken: tuple[int, int], chosen: range) -> None:
    assert list(outside(taken)) == list(chosen)


@pytest.mark.parametrize(
    ("servers", "sync", "message"),
    [
        ({"flags": {"--mem": 1}}, {}, "'--mem' is no name of a flag"),
        ({"flags": {"tp-size": 2}}, {}, "tp-size is set by rollout.sglang.tensor"),
        ({"urls": ["127.0.0.1:30000"]}, {}, "is no address of a server; write http://HOST:PORT"),
        ({"urls": ["http://a:1", "http://a:1"]}, {}, "names a server twice"),
        ({"urls": ["http://node7:1"]}, {"transport": "tensor"}, "http://node7:1 is another"),
        ({"urls": ["http://node7:1"]}, {"transport": "broadcast"}, "weight_sync.address: 127.0.0.1 cannot be reached"),
    ],
)
def test_values_that_cannot_work(servers: dict[str, Any], sync: dict[str, Any], message: str) -> None:
    config = scripted_config([], servers | {"urls": servers.get("urls", [])}, weight_sync=sync)
    with pytest.raises(ConfigError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("server", "servers", "sections", "message"),
    [
        ({}, {"tensor": 2}, {}, r"rollout\.sglang\.tensor: 2, but .* runs on 1"),
        ({}, {"dtype": "float32"}, {}, r"rollout\.sglang\.dtype: float32, but .* computes in bfloat16"),
        ({"context": 250}, {}, {}, r"referee\.max_prompt_tokens: 2000 \+ .* takes prompts of 243 tokens, and 248"),
        ({"model_path": "MODEL"}, {}, {}, r"with a vocabulary of 127, model\.path has 999"),
    ],
)
def test_a_server_that_cannot_serve_the_run(
    server: dict[str, Any], servers: dict[str, Any], sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if server.get("model_path"):
        make_model(tmp_path, "qwen2")
        server = {**server, "model_path": str(tmp_path)}
    with ScriptedServer(**server) as scripted:
        config = scripted_config([scripted.url], servers, **sections)
        with pytest.raises(ConfigError, match=message) as caught:
            check_engine(config, 999)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"overlap": 1, "engine": "embedded"}}, "with rollout.engine embedded"),
        ({"rollout": {"overlap": 1, "resample_rounds": 2}}, "with rollout.resample_rounds 2"),
        ({"rollout": {"overlap": 1}}, "nothing would correct for it"),
        ({"rollout": {"overlap": 1}, "loss": {"old_logprobs": "rollout"}}, None),
        ({"rollout": {"overlap": 1}, "loss": {"rollout_correction": "sequence_mis"}}, None),
    ],
)
def test_collecting_ahead_needs_servers_and_a_correction(changes: dict[str, Any], message: str | None) -> None:
    rollout = {"engine": "sglang", **changes["rollout"]}
    config = make_config(**{**changes, "rollout": rollout})
    if message is None:
        check_config(config)
        return
    with pytest.raises(ConfigError, match=rf"^rollout\.overlap: 1 {message}|{message}"):
        check_config(config)


def test_a_server_that_fits() -> None:
    with ScriptedServer(context=2048) as scripted:
        check_engine(scripted_config([scripted.url], {}, referee={"max_prompt_tokens": 2000}), 999)


def test_nobody_there() -> None:
    (port,) = choose_ports(ServersConfig(), "rollout.sglang")
    with pytest.raises(ConfigError, match=r"rollout\.sglang\.urls: .* does not answer"):
        check_engine(scripted_config([f"http://127.0.0.1:{port}"], {}), 127)


def test_something_else_there() -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="is not an SGLang server"):
            check_engine(scripted_config([f"http://127.0.0.1:{other.server_port}"], {}), 127)
        other.shutdown()


def test_a_version_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.scripted_form.VERSION", "0.5.18.post2")
    with ScriptedServer() as scripted, pytest.raises(ConfigError, match=r"is SGLang 0\.5\.18\.post2, 0\.5\.19 is"):
        check_engine(scripted_config([scripted.url], {}), 127)


@pytest.mark.parametrize(
    ("text", "version"), [("12", 12), ("0", 0), ("default", -1), ("", -1), ("-3", -1), (None, -1), ("1e3", -1)]
)
def test_version_of_weights(text: object, version: int) -> None:
    assert read_version(text) == version


def answer(**changes: Any) -> dict[str, Any]:
    meta = {
        "output_token_logprobs": [[-0.5, 5, None], [-0.25, 6, None]],
        "finish_reason": {"type": "stop"},
        "weight_versions": [{"version": "3", "start": 0, "end": 2}],
    }
    meta |= {name: value for name, value in changes.items() if name in meta}
    return {"output_ids": changes.get("output_ids", [5, 6]), "meta_info": changes.get("meta_info", meta)}


def test_an_answer() -> None:
    completion = read_completion(answer())
    assert (completion.token_ids, completion.logprobs) == ((5, 6), (-0.5, -0.25))
    assert [(span.version, span.start, span.end) for span in completion.spans] == [(3, 0, 2)]


@pytest.mark.parametrize(
    "changes",
    [
        {"output_ids": [5]},
        {"output_ids": None},
        {"meta_info": {}},
        {"output_token_logprobs": [[-0.5, 5, None], [-0.25, 7, None]]},
        {"output_token_logprobs": [[-0.5, 5, None], [None, 6, None]]},
        {"output_token_logprobs": [[-0.5, 5, None], [float("nan"), 6, None]]},
        {"finish_reason": {"type": "tired"}},
        {"weight_versions": [{"version": "3"}]},
    ],
)
def test_an_answer_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        read_completion(answer(**changes))
