"""Whole runs on two real vLLM servers: every way for the weights, and servers that are killed in the middle."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers import training
from tests.servers.process import Server, wait_until_ready
from tests.servers.test_faults import LONG_ANSWERS
from tests.servers.test_training import NUM_STEPS, check_ten_steps, versions
from tests.servers.updating import TRANSPORTS
from tests.servers.vllm_process import FLAGS, start_vllm
from tests.support.miniature import Miniature


@pytest.fixture(scope="module")
def two_vllm_servers(
    vllm_python: Path, miniature: Miniature, tmp_path_factory: pytest.TempPathFactory, _finish_on_sigterm: None
) -> Iterator[tuple[Server, Server]]:
    """Of the miniature's model, for runs that attach to servers which are already up."""
    flags = {**FLAGS, "max-num-seqs": 64}
    folders = [tmp_path_factory.mktemp("vllm") for _ in range(2)]
    with ExitStack() as stack:
        started = [
            stack.enter_context(start_vllm(vllm_python, miniature.seed, folder, flags=flags)) for folder in folders
        ]
        for one in started:
            wait_until_ready(one)
        yield started[0], started[1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ten_steps(
    transport: str, miniature: Miniature, two_vllm_servers: tuple[Server, Server], vllm_python: Path, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.vllm_overrides(
        miniature, vllm_python, run_dir, num_steps=NUM_STEPS,
        **{
            "rollout.vllm.urls": json.dumps([server.url for server in two_vllm_servers]),
            "weight_sync.transport": transport, "weight_sync.verify": 5,
        },
    )  # fmt: skip
    assert training.train(changes, log) == 0, log.read_text()[-3000:]
    check_ten_steps(run_dir)


@pytest.mark.usefixtures("_nothing_left_behind")
def test_one_is_killed_and_then_all(miniature: Miniature, vllm_python: Path, tmp_path: Path) -> None:
    """Every group is there and none is stale; without any server the run stops with one line, exit status 1."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    values = {**LONG_ANSWERS, "rollout.vllm.max_restarts": 0}
    run = training.start_training(
        training.vllm_overrides(miniature, vllm_python, run_dir, num_steps=1000, **values), log
    )
    try:
        training.wait_until(lambda: training.num_steps_done(run_dir) >= 1, run, log, seconds=400)
        victim, other = training.servers_of(run)
        training.wait_until(lambda: training.is_generating(victim), run, log)
        killed_in = training.num_steps_done(run_dir) + 1
        victim.kill()
        training.wait_until(lambda: training.num_steps_done(run_dir) > killed_in, run, log)
        training.wait_until(lambda: training.is_generating(other), run, log)
        other.kill()
        assert run.wait(120) == 1, log.read_text()[-3000:]
    finally:
        training.end(run)
    errors = [line for line in log.read_text().splitlines() if line.startswith("Error: ")]
    assert errors == ["Error: none of the 2 servers is left"]
    lines = {int(line["step"]): line for line in training.metrics(run_dir) if line["step"] > 0}
    assert {line["groups/total"] for line in lines.values()} == {24.0}
    assert sum(line["groups/dropped/engine_failed"] for line in lines.values()) == 0
    assert [versions(run_dir, step) for step in lines] == [{step - 1} for step in lines]
    assert lines[killed_in]["engine/lost"] > 0
    assert lines[killed_in]["engine/servers"] == 1
