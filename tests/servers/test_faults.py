"""Servers that are killed in the middle of a run, and runs that are stopped in the middle of everything."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.servers import training
from tests.servers.test_training import versions
from tests.support.miniature import Miniature

pytestmark = pytest.mark.usefixtures("_nothing_left_behind")

LONG_ANSWERS: dict[str, Any] = {"data.prompts_per_step": 24, "rollout.completions_per_prompt": 8}
# Rates every answer 0.5, and makes a step last as long as the start of a server, as a large model would: it waits while
# the run's log has told of more restarts than of servers that are up again, beside the two of the beginning.
SCORER = """
import pathlib, sys, time
for _ in range(4800):
    told = pathlib.Path(sys.argv[1]).read_text()
    if told.count(" is restarting: ") <= told.count(" is stale: up") - 2:
        break
    time.sleep(0.1)
for line in sys.stdin:
    print('{"quality": 0.5}')
"""


def test_one_of_two_is_killed_while_it_generates(miniature: Miniature, sglang_python: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    held_out = tmp_path / "heldout.jsonl"
    rows = miniature.train.read_text().splitlines(keepends=True)
    held_out.write_text(next(row for row in rows if json.loads(row)["task"] == "instruction"))
    slow = {
        "evaluation.data": f"[{held_out}]", "evaluation.every": 1, "evaluation.greedy": False,
        "evaluation.scorer": json.dumps(["python3", "-c", SCORER, str(log)]),
    }  # fmt: skip
    changes = training.overrides(miniature, sglang_python, run_dir, num_steps=5, **LONG_ANSWERS, **slow)
    run = training.start_training(changes, log)
    try:
        training.wait_until(lambda: training.num_steps_done(run_dir) >= 1, run, log)
        victim = training.servers_of(run)[0]
        training.wait_until(lambda: training.is_generating(victim), run, log)
        killed_in = training.num_steps_done(run_dir) + 1
        victim.kill()
        assert run.wait(800) == 0, log.read_text()[-3000:]
    finally:
        training.end(run)
    lines = {int(line["step"]): line for line in training.metrics(run_dir) if line["step"] > 0}
    assert [lines[step]["groups/total"] for step in lines] == [24.0] * 5
    assert sum(line["groups/dropped/engine_failed"] for line in lines.values()) == 0
    assert [versions(run_dir, step) for step in lines] == [{step - 1} for step in lines]
    assert lines[killed_in]["engine/lost"] > 0
    assert sum(line["engine/restarts"] for line in lines.values()) == 1
    assert lines[killed_in]["engine/servers"] == 1
    assert lines[killed_in + 2]["engine/servers"] == 2


def test_all_killed_and_started_again(miniature: Miniature, sglang_python: Path, tmp_path: Path) -> None:
    """The step is collected anew, with the same weights, as soon as one is back."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.overrides(miniature, sglang_python, run_dir, num_steps=4, **LONG_ANSWERS)
    run = training.start_training(changes, log)
    try:
        training.wait_until(lambda: training.num_steps_done(run_dir) >= 1, run, log)
        victims = training.servers_of(run)
        training.wait_until(lambda: training.is_generating(victims[0]), run, log)
        for victim in victims:
            victim.kill()
        assert run.wait(800) == 0, log.read_text()[-3000:]
    finally:
        training.end(run)
    assert "is collected again" in log.read_text()
    assert [versions(run_dir, step) for step in range(1, 5)] == [{0}, {1}, {2}, {3}]


def test_all_killed_for_good_and_resumed(miniature: Miniature, sglang_python: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.overrides(
        miniature, sglang_python, run_dir, num_steps=6,
        **LONG_ANSWERS, **{"checkpoint.every": 2, "rollout.sglang.max_restarts": 0, "rollout.sglang.num_servers": 1},
    )  # fmt: skip
    run = training.start_training(changes, log)
    try:
        training.wait_until(lambda: (run_dir / "checkpoints" / "step_000002").is_dir(), run, log)
        (victim,) = training.servers_of(run)
        training.wait_until(lambda: training.is_generating(victim), run, log)
        victim.kill()
        assert run.wait(120) == 1, log.read_text()[-3000:]  # far below the 480 s of ready_seconds
    finally:
        training.end(run)
    assert [line for line in log.read_text().splitlines() if line.startswith("Error: ")] == [
        "Error: none of the 1 servers is left"
    ]
    assert training.train(changes, log) == 0, log.read_text()[-3000:]
    assert [int(line["step"]) for line in training.metrics(run_dir)] == list(range(7))


@pytest.mark.parametrize(
    ("phase", "signals", "status"),
    [
        ("rollout", [signal.SIGINT, signal.SIGINT], 1),
        ("sync", [signal.SIGTERM], 85),
        ("update", [signal.SIGINT], 130),
    ],
)
def test_stopped_by_a_signal(
    phase: str,
    signals: list[signal.Signals],
    status: int,
    miniature: Miniature,
    sglang_python: Path,
    tmp_path: Path,
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    changes = training.overrides(
        miniature, sglang_python, run_dir, num_steps=1000,
        **LONG_ANSWERS, **{"rollout.sglang.num_servers": 1, "weight_sync.transport": "tensor"},
    )  # fmt: skip
    run = training.start_training(changes, log)
    try:
        training.wait_until(lambda: training.num_steps_done(run_dir) >= 2, run, log)
        (server,) = training.servers_of(run)
        if phase == "rollout":
            training.wait_until(lambda: training.is_generating(server), run, log)
        elif phase == "sync":
            server_log, before = run_dir / "servers" / "server_0.log", 0
            before = server_log.read_text().count("/begin_weight_update")
            training.wait_until(lambda: server_log.read_text().count("/begin_weight_update") > before, run, log)
        else:
            kept = len(list((run_dir / "batches").iterdir()))
            training.wait_until(lambda: len(list((run_dir / "batches").iterdir())) > kept, run, log)
        for number in signals:
            os.kill(run.pid, number)
            training.wait_until_taken(run, number)
        assert run.wait(120) == status, log.read_text()[-3000:]
    finally:
        training.end(run)
    if status != 1:
        assert list((run_dir / "checkpoints").glob("step_*"))
