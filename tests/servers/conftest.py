"""The environment of real servers, and one server that the tests of this folder share."""

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import psutil
import pytest

from megatron_urpo.conversion.convert import hf_to_megatron, megatron_to_hf
from megatron_urpo.inference.process import SHARED_FILE
from tests.servers import training
from tests.servers.process import READY_SECONDS, Server, run_sglang, start_sglang, wait_until_ready
from tests.support.miniature import Miniature
from tests.support.models import make_model
from tests.support.world import write_tokenizer

ROOT = Path(__file__).parent.parent.parent
INSTALL = ROOT / "scripts" / "sglang_cpu" / "install.sh"
VLLM_INSTALL = ROOT / "scripts" / "vllm_cpu" / "install.sh"
LEAVE_SECONDS = 60  # torch's own helper for shared memory leaves two seconds after its last user


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(2 * READY_SECONDS))  # the first test waits for the server to start


@pytest.fixture(scope="session")
def sglang_python() -> Path:
    """The interpreter of the environment that scripts/sglang_cpu/install.sh made."""
    return _python_of("SGLANG", INSTALL, ".venv-sglang")


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of the environment that scripts/vllm_cpu/install.sh made."""
    return _python_of("VLLM", VLLM_INSTALL, ".venv-vllm")


def _python_of(name: str, install: Path, default: str) -> Path:
    """Of NAME_VENV or the default folder; skips where there is no environment, fails with REQUIRE_NAME=1."""
    folder = Path(os.environ.get(f"{name}_VENV") or ROOT / default)
    checked = subprocess.run(["bash", str(install), "--check", str(folder)], capture_output=True, text=True)
    if checked.returncode != 0:
        reason = checked.stderr.strip()
        if os.environ.get(f"REQUIRE_{name}") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def _finish_on_sigterm() -> Iterator[None]:
    """A terminated test run ends through the fixtures, so that no server outlives it."""

    def leave(number: int, frame: FrameType | None) -> None:
        pytest.exit("terminated", returncode=128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 127 words with a tokenizer, which SGLang asks for although it is sent token ids alone."""
    folder = tmp_path_factory.mktemp("served") / "original"
    make_model(folder, "qwen2")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def model(original: Path) -> Path:
    """What is served: `original`, converted to Megatron and back, as a run's result reaches servers elsewhere."""
    megatron, folder = original.parent / "megatron", original.parent / "model"
    hf_to_megatron(original, megatron)
    megatron_to_hf(megatron, folder)
    return folder


@pytest.fixture(scope="session")
def two_servers(
    sglang_python: Path, miniature: Miniature, tmp_path_factory: pytest.TempPathFactory, _finish_on_sigterm: None
) -> Iterator[tuple[Server, Server]]:
    """Of the miniature's model, for runs that attach to servers which are already up."""
    folders = [tmp_path_factory.mktemp("sglang") for _ in range(2)]
    with ExitStack() as stack:
        started = [stack.enter_context(start_sglang(sglang_python, miniature.seed, folder)) for folder in folders]
        for one in started:
            wait_until_ready(one)
        yield started[0], started[1]


@pytest.fixture(scope="session")
def server(
    sglang_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, _finish_on_sigterm: None
) -> Iterator[Server]:
    with run_sglang(sglang_python, model, tmp_path_factory.mktemp("sglang")) as started:
        yield started


@pytest.fixture
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of the test's runs, and no shared memory that one of them had mapped at any time.

    They are known by a word in their environment, which all that descend from a run inherit: other tests' processes,
    such as a browser that lives as long as the session, are no concern of it.
    """
    mark = f"{training.MARK}={secrets.token_hex(8)}"
    monkeypatch.setenv(*mark.split("="))
    seen: set[Path] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            seen.update(_shared_memory(training.marked(mark)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    over.set()
    watcher.join()
    assert seen
    deadline = time.monotonic() + LEAVE_SECONDS
    while (any(path.exists() for path in seen) or training.marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {path for path in seen if path.exists()} == set()
    assert [(process.pid, process.name()) for process in training.marked(mark)] == []


def _shared_memory(processes: list[psutil.Process]) -> set[Path]:
    found: set[Path] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            found |= {Path(name) for name in SHARED_FILE.findall(Path(f"/proc/{process.pid}/maps").read_text())}
    return found
