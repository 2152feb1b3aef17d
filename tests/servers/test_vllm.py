"""A real vLLM server: token ids in, token ids and their log-probabilities out, and weights that are really replaced.

After each update the server's log-probabilities are compared with the pushed model's: stock vLLM answers an update with
success on a CPU and then computes from a mixture of old and new weights.
"""

import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.vllm.accept import check_urls
from megatron_urpo.inference.vllm.client import VLLMClient
from megatron_urpo.protocols import ServerRefused
from megatron_urpo.types import Completion, GenerationRequest, VersionSpan
from megatron_urpo.weight_sync.push import push_weights
from tests.servers.conftest import VLLM_INSTALL
from tests.servers.process import Server
from tests.servers.test_environment import NUM_NEW_TOKENS, PROMPTS, RELATIVE_ERROR, TEMPERATURES, runs
from tests.servers.updating import (
    SECONDS,
    TRANSPORTS,
    OneRank,
    Pool,
    Source,
    assert_nothing_is_left,
    listening_ports,
    load,
    make_transport,
    receiving,
    shared_by_us,
)
from tests.servers.vllm_process import CONTEXT, new_model, run_vllm
from tests.support.rollout import make_config

VOCABULARY = 127
STOP = 77


def make_client(url: str, background: BackgroundLoop, stop_token_ids: Sequence[int] = ()) -> VLLMClient:
    return VLLMClient(
        url,
        background,
        tensor=1,
        stop_token_ids=stop_token_ids,
        vocab_size=VOCABULARY,
        update_seconds=SECONDS,
        accept=lambda url, info: None,
    )


@dataclass(frozen=True)
class Served:
    server: Server
    model: Path
    tied: bool
    background: BackgroundLoop
    client: VLLMClient

    def ask(self, prompt: Sequence[int], **values: float) -> Completion:
        given: dict[str, Any] = {"max_new_tokens": NUM_NEW_TOKENS, "temperature": 1.0, "seed": 0, **values}
        request = GenerationRequest(prompt_ids=tuple(prompt), num_completions=1, **given)
        return self.background.wait(self.client.generate(request, 0, SECONDS))

    def counted(self, name: str) -> float:
        """One of the server's own numbers, which it renews with every token."""
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=SECONDS) as answer:
            (value,) = re.findall(rf"^vllm:{name}{{.*}} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(value)

    def assert_serves(self, model: Path, version: int, temperatures: Sequence[float] = (1.0,) * len(PROMPTS)) -> None:
        """The tolerance is the one that `test_environment` derives; this model's sums have as many terms."""
        reference = load(model)
        for seed, (prompt, temperature) in enumerate(zip(PROMPTS, temperatures, strict=True)):
            completion = self.ask(prompt, temperature=temperature, seed=seed)
            assert completion.spans == (VersionSpan(version, 0, NUM_NEW_TOKENS),)
            assert completion.finish_reason == "length"
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logits_TV = reference(ids).logits[0, len(prompt) - 1 : -1] / temperature
            expected_T = logits_TV.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            tolerance = RELATIVE_ERROR * float(logits_TV.abs().max())
            found_T = torch.tensor(completion.logprobs, dtype=torch.float64)
            torch.testing.assert_close(found_T, expected_T, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=["untied", "tied"])
def served(
    request: pytest.FixtureRequest,
    vllm_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _finish_on_sigterm: None,
) -> Iterator[Served]:
    """One server at a time, since each takes 3 GB. When it has stopped nothing of it or of an update is left."""
    tied = request.param == "tied"
    folder = tmp_path_factory.mktemp("vllm")
    new_model(folder / "model", seed=0, tied=tied)
    background = BackgroundLoop("vllm")
    with run_vllm(vllm_python, folder / "model", folder) as server:
        client = make_client(server.url, background)
        yield Served(server, folder / "model", tied, background, client)
        background.wait(client.close())
        processes, shared_memory = server.processes(), server.shared_memory()
        assert len(processes) >= 3  # web server, scheduler, worker
    background.close()
    assert [process for process in processes if runs(process)] == []
    assert [path for path in shared_memory if path.exists()] == []
    assert shared_by_us() == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) != 0


def test_log_probabilities_are_those_of_transformers(served: Served) -> None:
    """The first test of a server: it has the weights that it was started with."""
    served.assert_serves(served.model, -1, TEMPERATURES)


def test_stop_token_is_part_of_the_completion(served: Served) -> None:
    """Of thirty samples some reach it; the others are cut at the limit."""
    stopping = replace(served, client=make_client(served.server.url, served.background, [STOP]))
    found = [stopping.ask(PROMPTS[0], seed=seed) for seed in range(30)]
    served.background.wait(stopping.client.close())
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for completion in found:
        assert len(completion.logprobs) == len(completion.token_ids)
        if completion.finish_reason == "stop":
            assert completion.token_ids.index(STOP) == len(completion.token_ids) - 1
        else:
            assert STOP not in completion.token_ids


def test_the_seed_counts(served: Served) -> None:
    first, again, other = (served.ask(PROMPTS[0], seed=seed).token_ids for seed in (5, 5, 6))
    assert first == again != other


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_update_replaces_every_weight(served: Served, transport: str, tmp_path: Path) -> None:
    """Of an update that broke off nothing is seen: a whole one follows. The server has the old prompts in its cache."""
    version, before = 1 + TRANSPORTS.index(transport), set(listening_ports())
    folder = tmp_path / "new"
    shapes = new_model(folder, seed=version, tied=served.tied)
    assert ("lm_head.weight" in shapes) != served.tied
    pool, missing = Pool(served.client.updates), list(shapes)[-1]
    with receiving(pool, shapes, make_transport(transport, tmp_path, folder)) as receiver:
        with pytest.raises(ValueError, match=f"{missing} did not come"):
            push_weights(Source(folder, shapes, missing), receiver, version, OneRank())
        metrics = push_weights(Source(folder, shapes), receiver, version, OneRank())
    assert pool.given == [([served.server.url], version)]
    assert metrics["weight_sync/buckets"] >= 4
    assert metrics["weight_sync/retries"] == 0
    served.assert_serves(folder, version)
    assert_nothing_is_left(before)
    assert not (tmp_path / "transit").exists()


def test_what_runs_when_an_update_begins_is_broken_off(served: Served) -> None:
    """And what comes meanwhile waits for its end, so that no completion is by two versions.

    The update begins when the server has all requests and has written tokens of some, thousands before the last.
    """
    updates = served.client.updates
    before = served.ask([3]).spans[0].version
    written = served.counted("generation_tokens_total") + NUM_NEW_TOKENS  # these may not have been counted yet
    with ThreadPoolExecutor(max_workers=21) as threads:  # the server runs sixteen at once
        asked = [threads.submit(served.ask, [3, i], max_new_tokens=CONTEXT - 2) for i in range(20)]
        while (
            served.counted("num_requests_running") + served.counted("num_requests_waiting") < len(asked)
            or served.counted("generation_tokens_total") <= written
        ):
            time.sleep(0.05)
        updates.begin_update()
        late = threads.submit(served.ask, [4])
        updates.end_update(90)
        assert late.result().spans == (VersionSpan(90, 0, NUM_NEW_TOKENS),)
    found = [future.result() for future in asked]
    assert {completion.finish_reason for completion in found} == {"abort"}
    begun = [completion for completion in found if completion.token_ids]
    assert begun
    assert [completion.spans for completion in begun] == [
        (VersionSpan(before, 0, len(completion.token_ids)),) for completion in begun
    ]


def test_weights_that_do_not_fit_are_refused(served: Served, tmp_path: Path) -> None:
    """The server goes on; what it said is in the error."""
    for number, (tensors, message) in enumerate(
        (
            ({}, "has no safetensors files"),
            ({"model.nothing.weight": torch.zeros(3)}, "no module or parameter named"),
            ({"model.norm.weight": torch.zeros(3)}, r"torch\.Size\(\[3\]\)"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        if tensors:
            save_file(tensors, folder / "part.safetensors")
        # It closes a connection after an answer of 500: a request that crosses with that is lost.
        client = make_client(served.server.url, served.background)
        with pytest.raises(ServerRefused, match=message):
            client.updates.load_folder(folder)
        served.background.wait(client.close())
    assert served.ask([3]).finish_reason == "length"


def test_a_server_that_is_up_is_looked_at_before_a_run(served: Served) -> None:
    def config(**servers: object) -> Config:
        rollout = {"engine": "vllm", "max_new_tokens": 16, "max_prompt_tokens": 100}
        vllm = {"urls": [served.server.url], "dtype": "float32", **servers}
        referee = {"max_new_tokens": 16, "max_prompt_tokens": 200}
        return make_config(rollout={**rollout, "completions_per_prompt": 2, "vllm": vllm}, referee=referee)

    check_urls(config(), VOCABULARY)
    with pytest.raises(ConfigError, match=r"rollout\.vllm\.urls: .* vocabulary of 127, model\.path has 999"):
        check_urls(config(), 999)
    with pytest.raises(ConfigError, match=r"rollout\.vllm\.dtype: bfloat16, but .* runs with float32"):
        check_urls(config(dtype="bfloat16"), VOCABULARY)
    assert served.background.wait(served.client.capacity(SECONDS)) > 1000
    assert served.client.describe() == "vllm 0.32.0, float32, 1 tensor-parallel ranks"


def test_check_names_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    done = subprocess.run(["bash", str(VLLM_INSTALL), "--check", str(folder)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: no vLLM of this version in {folder}; make it with: bash scripts/vllm_cpu/install.sh {folder}"
    ]
    assert not folder.exists()
