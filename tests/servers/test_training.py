"""Whole runs on real servers: every way for the weights, faults in the middle, and what is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.servers import training
from tests.servers.process import Server
from tests.support.miniature import Miniature

NUM_STEPS = 10
# Rounding alone: the same float32 model computed by two programs. Stale or damaged weights are off by 1e-2 and more.
MAX_MISMATCH = 1e-4


def versions(run_dir: Path, step: int) -> set[int]:
    """Of every token that was said in a step, by players and referees."""
    path = run_dir / "transcripts" / f"step_{step:06d}.jsonl"
    groups = [json.loads(line) for line in path.read_text().splitlines()]
    spoken = [said for group in groups for said in (*group["completions"], *group["judgements"])]
    assert spoken
    return {version for said in spoken for version in said["versions"]}


def prompts(run_dir: Path, step: int) -> list[str]:
    path = run_dir / "transcripts" / f"step_{step:06d}.jsonl"
    return [json.loads(line)["prompt"]["id"] for line in path.read_text().splitlines()]


def attached(servers: tuple[Server, Server]) -> dict[str, Any]:
    return {"rollout.sglang.urls": json.dumps([server.url for server in servers])}


def check_ten_steps(run_dir: Path) -> None:
    lines = [line for line in training.metrics(run_dir) if line["step"] > 0]
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    assert max(line["mismatch/max"] for line in lines) <= MAX_MISMATCH
    assert {line["engine/servers"] for line in lines} == {2.0}
    for task in ("reasoning", "preference", "instruction"):
        assert any(f"mismatch/max/{task}" in line for line in lines)
    # Step n is written by the policy that step n - 1 made; the last policy was sent, and wrote nothing.
    assert [versions(run_dir, step) for step in range(1, NUM_STEPS + 1)] == [{n} for n in range(NUM_STEPS)]


def test_ten_steps_on_two_servers_of_its_own(miniature: Miniature, sglang_python: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.overrides(
        miniature, sglang_python, run_dir, num_steps=NUM_STEPS,
        **{"parallel.tensor": 2, "weight_sync.transport": "broadcast", "weight_sync.verify": 5},
    )  # fmt: skip
    assert training.train(changes, log, num_ranks=2) == 0, log.read_text()[-3000:]
    check_ten_steps(run_dir)


@pytest.mark.parametrize("transport", ["tensor", "disk"])
def test_ten_steps_on_two_servers_that_are_up(
    transport: str, miniature: Miniature, two_servers: tuple[Server, Server], sglang_python: Path, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.overrides(
        miniature, sglang_python, run_dir, num_steps=NUM_STEPS, **attached(two_servers),
        **{"parallel.tensor": 2, "weight_sync.transport": transport, "weight_sync.verify": 5},
    )  # fmt: skip
    assert training.train(changes, log, num_ranks=2) == 0, log.read_text()[-3000:]
    check_ten_steps(run_dir)
    assert not (run_dir / "weights_in_transit").exists()
    assert [server.process.status for server in two_servers] == [None, None]


def test_one_batch_ahead(
    miniature: Miniature, two_servers: tuple[Server, Server], sglang_python: Path, tmp_path: Path
) -> None:
    """Also stopped and resumed: the batch that was ahead is drawn again, none is left out."""
    values = {
        **attached(two_servers), "rollout.overlap": 1, "loss.rollout_correction": "token_tis", "checkpoint.every": 2,
    }  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run_dir, num_steps in ((whole, 4), (parts, 2), (parts, 4)):
        changes = training.overrides(miniature, sglang_python, run_dir, num_steps=num_steps, **values)
        assert training.train(changes, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-3000:]
    assert [versions(whole, step) for step in range(1, 5)] == [{0}, {0}, {1}, {2}]
    assert [versions(parts, step) for step in range(1, 5)] == [{0}, {0}, {2}, {2}]  # nothing is ahead of a fresh start
    lines = [line for line in training.metrics(whole) if line["step"] > 0]
    assert lines[0]["mismatch/max"] <= MAX_MISMATCH
    assert min(line["mismatch/max"] for line in lines[1:]) > MAX_MISMATCH  # an update lies between
    assert all(line["mismatch/weight_mean"] != 1 for line in lines[1:])
    assert [prompts(whole, step) for step in range(1, 5)] == [prompts(parts, step) for step in range(1, 5)]


def test_a_run_whose_engine_drifts_stops(
    miniature: Miniature, two_servers: tuple[Server, Server], sglang_python: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    values = {**attached(two_servers), "mismatch.max_kl": 1e-300}
    changes = training.overrides(miniature, sglang_python, tmp_path / "run", num_steps=3, **values)
    assert training.train(changes, log) == 1
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("Error: ")]
    assert "sglang 0.5.21, float32" in line


def test_a_server_that_is_already_up(miniature: Miniature, server: Server, sglang_python: Path, tmp_path: Path) -> None:
    """It is of another model: refused before anything starts."""
    changes = training.overrides(
        miniature, sglang_python, tmp_path / "run", num_steps=1, **{"rollout.sglang.urls": f"[{server.url}]"}
    )
    log = tmp_path / "log"
    assert training.train(changes, log) == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "vocabulary of 127" in line
