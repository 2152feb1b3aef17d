"""Whole runs on real servers: every way for the weights, faults in the middle, and what is left behind."""

import json
from pathlib import Path

import pytest

from megatron_urpo.inference.process import SHARED_MEMORY
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


@pytest.mark.parametrize("transport", ["broadcast", "tensor", "disk"])
def test_ten_steps_on_two_servers(transport: str, miniature: Miniature, sglang_python: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    before = set(SHARED_MEMORY.iterdir())
    changes = training.overrides(
        miniature, sglang_python, run_dir, num_steps=NUM_STEPS,
        **{"parallel.tensor": 2, "weight_sync.transport": transport, "weight_sync.verify": 5},
    )  # fmt: skip
    assert training.train(changes, log, num_ranks=2) == 0, log.read_text()[-3000:]
    lines = [line for line in training.metrics(run_dir) if line["step"] > 0]
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    assert max(line["mismatch/max"] for line in lines) <= MAX_MISMATCH
    assert {line["engine/servers"] for line in lines} == {2.0}
    for task in ("reasoning", "preference", "instruction"):
        assert all(f"reward/mean/{task}" in line for line in lines[:1])
    # Step n is written by the policy that step n - 1 made; the last policy was sent, and wrote nothing.
    assert [versions(run_dir, step) for step in range(1, NUM_STEPS + 1)] == [{n} for n in range(NUM_STEPS)]
    assert not (run_dir / "weights_in_transit").exists()
    assert set(SHARED_MEMORY.iterdir()) <= before


def test_a_server_that_is_already_up(miniature: Miniature, server: Server, sglang_python: Path, tmp_path: Path) -> None:
    """It is of another model: refused before anything starts."""
    changes = training.overrides(
        miniature, sglang_python, tmp_path / "run", num_steps=1, **{"rollout.sglang.urls": f"[{server.url}]"}
    )
    log = tmp_path / "log"
    assert training.train(changes, log) == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "vocabulary of 127" in line
