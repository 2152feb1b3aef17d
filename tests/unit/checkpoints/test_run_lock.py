"""One run at a time has a run folder; locks of runs that cannot live any more are taken over, and that is said."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from megatron_urpo.checkpoints.run_lock import NAME, STALE_SECONDS, acquire, find_dead_lock, run_lock
from megatron_urpo.config import ConfigError
from megatron_urpo.policy.parallel import Parallel

HOLD = """
import sys
from pathlib import Path
from megatron_urpo.checkpoints.run_lock import acquire
acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def other_lock(run: Path, age: float = 0.0, **values: Any) -> Path:
    """A lock as a process of another host has left it `age` seconds ago."""
    run.mkdir(exist_ok=True)
    lock = {"host": "node7", "pid": 4711, "pid_namespace": "pid:[1]", "started": 1.0, "job": None, "restart": 0}
    path = run / NAME
    path.write_text(json.dumps({**lock, **values}))
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    return path


def test_a_process_that_lives_keeps_it_and_one_that_died_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            ConfigError, match=rf"in use by process {holder.pid} on \S+ .*stop it, or give another run_dir"
        ):
            acquire(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    mine, said = acquire(tmp_path)
    assert said is not None
    assert f"process {holder.pid}" in said
    assert "gone" in said
    assert json.loads((tmp_path / NAME).read_text()) == mine
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_number_that_came_again_is_another_process(tmp_path: Path) -> None:
    mine, _ = acquire(tmp_path)
    (tmp_path / NAME).write_text(json.dumps({**mine, "started": psutil.Process().create_time() - 50}))
    assert "gone" in str(acquire(tmp_path)[1])


def test_another_host_is_believed_until_its_heartbeat_is_old(tmp_path: Path) -> None:
    other_lock(tmp_path, age=STALE_SECONDS - 20, job="12")
    with pytest.raises(
        ConfigError, match=r"process 4711 on node7, job 12 \(last sign 1[56]\d seconds ago\); stop it, or wait"
    ):
        acquire(tmp_path)
    other_lock(tmp_path, age=STALE_SECONDS + 20)
    assert "gave no sign for 20" in str(acquire(tmp_path)[1])


def test_a_container_of_this_host_is_another_host(tmp_path: Path) -> None:
    mine, _ = acquire(tmp_path)
    other_lock(tmp_path, host=mine["host"])  # its processes are numbered apart: 4711 need not be here to live
    with pytest.raises(ConfigError, match="in use by process 4711"):
        acquire(tmp_path)


def test_a_requeued_job_takes_over_its_own_earlier_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_lock(tmp_path, job="12", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(ConfigError):
        acquire(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "an earlier start of this job" in str(acquire(tmp_path)[1])


def test_it_gives_signs_of_life_and_is_gone_at_the_end(tmp_path: Path) -> None:
    parallel = cast(Parallel, SimpleNamespace(rank=0, from_rank0=lambda function: function()))
    said: list[str] = []
    path = other_lock(tmp_path, age=STALE_SECONDS + 20)
    with run_lock(tmp_path, parallel, said.append, heartbeat=0.01):
        assert len(said) == 1
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not path.exists()


def test_a_lock_that_is_none_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")
    with pytest.raises(ConfigError, match="cannot be read; if no run uses the folder, remove it"):
        acquire(tmp_path)
    assert (tmp_path / NAME).exists()


def test_a_folder_that_cannot_be_written_to_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"run_dir: /proc/self/run cannot be written to .*give a folder that this user"
    ):
        acquire(Path("/proc/self/run"))


def test_before_the_queue_a_job_that_slurm_knows_has_the_folder(tmp_path: Path) -> None:
    """Without a sign of life as well: it waits for its next start."""
    other_lock(tmp_path, age=STALE_SECONDS + 20, job="12")
    with pytest.raises(
        ConfigError, match=r"in use by job 12 \(PENDING\), last on node7; `scancel 12`, or give another run_dir$"
    ):
        find_dead_lock(tmp_path, {"12": "PENDING"}.get)


def test_before_the_queue_a_dead_lock_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    def nobody_asks(number: str) -> str | None:
        raise AssertionError(number)

    assert find_dead_lock(tmp_path / "new", nobody_asks) is None
    assert not (tmp_path / "new").exists()
    path = other_lock(tmp_path, age=STALE_SECONDS - 20, job="12")
    with pytest.raises(ConfigError, match=r"process 4711 on node7, job 12 \(last sign 1[56]\d seconds ago\)"):
        find_dead_lock(tmp_path, {"13": "RUNNING"}.get)
    other_lock(tmp_path, age=STALE_SECONDS + 20)
    before = path.read_text()
    assert "process 4711 on node7, which gave no sign for 20" in str(find_dead_lock(tmp_path, nobody_asks))
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
