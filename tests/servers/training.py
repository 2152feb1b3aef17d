"""Runs of the miniature whose engine is a fleet of real servers, and what is to be seen of them afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.servers.process import CPU_ENVIRONMENT, CPU_FLAGS
from tests.support.miniature import ROOT, Miniature

CONFIG = ROOT / "examples" / "miniature" / "config.yaml"


def overrides(miniature: Miniature, python: Path, run_dir: Path, **values: Any) -> list[str]:
    """A run on two servers of its own, on a CPU in float32."""
    servers = {
        "rollout.engine": "sglang",
        "rollout.sglang.num_servers": 2,
        "rollout.sglang.command": json.dumps([str(python), "-m", "sglang.launch_server"]),
        "rollout.sglang.dtype": "float32",
        "rollout.sglang.flags": json.dumps(CPU_FLAGS),
        "rollout.sglang.environment": json.dumps(CPU_ENVIRONMENT),
        "weight_sync.bucket_mib": 1,
    }
    return miniature.overrides(run_dir, **{**servers, **values})


def start_training(changes: Sequence[str], log: Path, num_ranks: int = 1) -> psutil.Popen:
    """`megatron-urpo train` as a user starts it, in a process group of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m"]
    command = launcher if num_ranks > 1 else [sys.executable, "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("ab") as output:
        return psutil.Popen(
            [*command, "megatron_urpo.cli", "train", str(CONFIG), *changes],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def train(changes: Sequence[str], log: Path, num_ranks: int = 1, seconds: float = 400) -> int:
    """Its exit status; ended with all its children where it takes longer."""
    process = start_training(changes, log, num_ranks)
    try:
        return int(process.wait(seconds))
    except psutil.TimeoutExpired:
        end(process)
        raise AssertionError(f"not done after {seconds:g} s:\n{log.read_text()[-3000:]}") from None


def end(process: psutil.Popen) -> None:
    """Kills a run's process group; the guards of its servers end those."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def servers_of(run: psutil.Popen) -> list[psutil.Process]:
    """The first process of each server that a run has started, oldest first."""
    found = []
    for process in run.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sglang.launch_server" in process.cmdline() and process.parent() in (run, *run.children(recursive=True)):
                found.append(process)
    firsts = [process for process in found if process.parent() not in found]
    return sorted(firsts, key=lambda process: process.create_time())


def wait_until(condition: Callable[[], bool], run: psutil.Popen, log: Path, seconds: float = 200) -> None:
    """Fails where the run ends, or the time does, before `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, f"the run ended with {run.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"still waiting after {seconds:g} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.01)


def num_steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return int(metrics(run_dir)[-1]["step"]) if path.is_file() and path.read_text().strip() else 0


def is_generating(server: psutil.Process) -> bool:
    """Whether it has requests right now."""
    port = server.cmdline()[server.cmdline().index("--port") + 1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/loads", timeout=10) as answer:
        return any(load["num_running_reqs"] > 0 for load in json.load(answer)["loads"])
