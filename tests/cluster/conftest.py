"""A real SLURM of two nodes for the session, each with a network of its own; skipped by name where it cannot be."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import pytest

from tests.cluster.slurm import LOCAL, Slurm
from tests.servers.conftest import sglang_python
from tests.support.miniature import ROOT

__all__ = ["sglang_python"]  # a fixture here as well


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))  # the first test waits for jobs that share two cores


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """With REQUIRE_SLURM=1 a missing SLURM is a failure."""
    installed = subprocess.run(["bash", str(LOCAL), "install"], cwd=ROOT, capture_output=True, text=True)
    if installed.returncode:
        reason = f"no local SLURM: {installed.stderr.strip()}"
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)

    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket may have 107 characters
    # A terminated session may have no time left for `finally`: workers of pytest-xdist are ended with their parent.
    command = ["bash", str(LOCAL), "guard", str(folder), str(os.getpid())]
    guard = subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
    try:
        started = subprocess.run(["bash", str(LOCAL), "start", str(folder)], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        yield Slurm(folder)
    finally:
        stopped = subprocess.run(["bash", str(LOCAL), "stop", str(folder)], capture_output=True, text=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(guard.pid, signal.SIGTERM)
        guard.wait()
    assert stopped.returncode == 0, stopped.stderr
    assert not any(Path("/run/netns").glob("urpo*"))
