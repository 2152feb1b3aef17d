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

from tests.servers.process import CPU_ENVIRONMENT, CPU_FLAGS, READY_SECONDS
from tests.support.miniature import ROOT, Miniature

SGLANG_PROGRAM, VLLM_PROGRAM = "sglang.launch_server", "vllm.entrypoints.openai.api_server"
VLLM_RUNNING = "vllm:num_requests_running"
MARK = "URPO_TEST_RUN"
"""A variable that a test may set, so that what its runs leave behind is found by `marked`."""
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


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with `mark` (NAME=VALUE) in their environment, this one and zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            told = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark.encode() in told and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def servers_of(run: psutil.Popen) -> list[psutil.Process]:
    """The first process of each server that a run has started, oldest first."""
    found = []
    for process in run.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if {SGLANG_PROGRAM, VLLM_PROGRAM} & set(process.cmdline()) and process.parent() in (
                run,
                *run.children(recursive=True),
            ):
                found.append(process)
    firsts = [process for process in found if process.parent() not in found]
    return sorted(firsts, key=lambda process: process.create_time())


def wait_until(condition: Callable[[], bool], run: psutil.Popen, log: Path, seconds: float = READY_SECONDS) -> None:
    """Fails where the run ends, or the time does, before `condition` holds; the run may have servers to start first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, f"the run ended with {run.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"still waiting after {seconds:g} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.01)


def wait_until_taken(run: psutil.Popen, number: signal.Signals) -> None:
    """Until `number` is not pending any more: one that comes while another like it is pending would be lost."""
    bit = 1 << (number - 1)
    with contextlib.suppress(OSError, psutil.Error):
        while run.status() != psutil.STATUS_ZOMBIE:
            told = Path(f"/proc/{run.pid}/status").read_text()
            pending = [line.split()[1] for line in told.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
            if not any(int(mask, 16) & bit for mask in pending):
                break
            time.sleep(0.01)
    time.sleep(0.05)  # the interpreter notes a signal that was taken, and handles it between two instructions


def num_steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return int(metrics(run_dir)[-1]["step"]) if path.is_file() and path.read_text().strip() else 0


def is_generating(server: psutil.Process) -> bool:
    """Whether it has requests right now."""
    port = server.cmdline()[server.cmdline().index("--port") + 1]
    if VLLM_PROGRAM in server.cmdline():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = [line.split() for line in answer.read().decode().splitlines() if line.startswith(VLLM_RUNNING)]
        return any(float(words[-1]) > 0 for words in told)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/loads", timeout=10) as answer:
        return any(load["num_running_reqs"] > 0 for load in json.load(answer)["loads"])
