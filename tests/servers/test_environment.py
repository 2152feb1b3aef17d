"""The environment of scripts/sglang_cpu: a real server, token ids in, token ids and their log-probabilities out."""

import contextlib
import json
import math
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.servers.conftest import INSTALL
from tests.servers.process import Server, run_sglang

PROMPTS = [[1, 9, 5, 30, 40], [1, 9, 5, 77], [3], list(range(4, 60))]  # the first two share a prefix
TEMPERATURES = [1.0, 0.5, 1.0, 1.0]
NUM_NEW_TOKENS = 48

# Rounding errors of a float32 sum of n terms grow like sqrt(n) half-units in the last place, and those of sums one
# after the other add up like the square root of their number. A token passes 15 sums (7 for each of two layers, 1 for
# the logits) of at most 128 terms. SAFETY is for the largest of some two hundred tokens instead of the usual one, and
# for norms, softmax and temperature. A bfloat16 server would be off by 2**16 times as much.
SAFETY = 4
RELATIVE_ERROR = SAFETY * 2**-24 * math.sqrt(15 * 128)


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def get(server: Server, path: str) -> Any:
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return json.load(answer)


def test_log_probabilities_are_those_of_transformers(server: Server, original: Path) -> None:
    """Of the model before its two conversions."""
    sampling = [
        {"max_new_tokens": NUM_NEW_TOKENS, "temperature": temperature, "ignore_eos": True}
        for temperature in TEMPERATURES
    ]
    answers = post(server, "/generate", {"input_ids": PROMPTS, "sampling_params": sampling, "return_logprob": True})
    reference = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float64).eval()
    for prompt, temperature, answer in zip(PROMPTS, TEMPERATURES, answers, strict=True):
        completion = answer["output_ids"]
        assert len(completion) == NUM_NEW_TOKENS
        logprobs, ids, _ = zip(*answer["meta_info"]["output_token_logprobs"], strict=True)
        assert list(ids) == completion
        with torch.no_grad():
            logits_TV = reference(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
        expected_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        tolerance = RELATIVE_ERROR * float(logits_TV.abs().max())
        torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), expected_T, rtol=0, atol=tolerance)


def test_greedy_tokens_are_those_of_transformers(server: Server, original: Path) -> None:
    """Each is the likeliest after those before it, so they are what transformers continues with."""
    sampling = {"max_new_tokens": NUM_NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    answers = post(server, "/generate", {"input_ids": PROMPTS, "sampling_params": sampling})
    reference = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float64).eval()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits_TV = reference(torch.tensor([prompt + answer["output_ids"]])).logits[0, len(prompt) - 1 : -1]
        assert answer["output_ids"] == logits_TV.argmax(-1).tolist()


def test_stop_token_is_part_of_the_completion(server: Server) -> None:
    request = {"input_ids": PROMPTS[0], "return_logprob": True}
    greedy = post(server, "/generate", {**request, "sampling_params": {"max_new_tokens": 8, "temperature": 0}})
    stop = greedy["output_ids"][3]
    cut = greedy["output_ids"].index(stop) + 1
    sampling = {"max_new_tokens": 8, "temperature": 0, "stop_token_ids": [stop]}
    answer = post(server, "/generate", {**request, "sampling_params": sampling})
    assert answer["output_ids"] == greedy["output_ids"][:cut]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert len(answer["meta_info"]["output_token_logprobs"]) == cut


def test_server_is_the_pinned_version_and_tells_the_version_of_its_weights(server: Server) -> None:
    requirements = (INSTALL.parent / "requirements.txt").read_text().splitlines()
    assert f"sglang=={get(server, '/server_info')['version']}" in requirements
    assert get(server, "/model_info")["weight_version"] == "default"
    assert post(server, "/update_weight_version", {"new_version": "7", "abort_all_requests": False})["success"]
    sampling = {"max_new_tokens": 3, "ignore_eos": True}
    answer = post(server, "/generate", {"input_ids": PROMPTS[0], "sampling_params": sampling})
    assert answer["meta_info"]["weight_versions"] == [{"version": "7", "start": 0, "end": 3}]


def test_nothing_is_left_behind(sglang_python: Path, model: Path, tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), run_sglang(sglang_python, model, tmp_path) as server:
        processes, port = server.processes(), int(server.url.rsplit(":", 1)[1])
        assert len(processes) >= 2  # web server, scheduler
        shared_memory = server.shared_memory()
        assert len(shared_memory) >= 2  # the scheduler's load, semaphores
        raise KeyboardInterrupt
    assert [process for process in processes if runs(process)] == []
    assert [path for path in shared_memory if path.exists()] == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_ends_at_once_shows_its_last_lines(sglang_python: Path, model: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with status 2: (.|\n)*--no-such-flag"),
        run_sglang(sglang_python, model, tmp_path, **{"no-such-flag": True}),
    ):
        pass


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_check_names_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    done = subprocess.run(["bash", str(INSTALL), "--check", str(folder)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: no SGLang of this version in {folder}; make it with: bash scripts/sglang_cpu/install.sh {folder}"
    ]
    assert not folder.exists()


def test_install_touches_no_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = subprocess.run(["bash", str(INSTALL), str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "was not made by this script" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
