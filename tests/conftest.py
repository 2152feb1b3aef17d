"""Settings that every test shares, and how workers of pytest-xdist share the tests."""

import fcntl
import os
from typing import Any

import pytest
from hypothesis import settings

from tests.support.miniature import Miniature, make_miniature

# A deadline in milliseconds fails on a busy machine and says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

TOGETHER = ("tests/cluster/", "tests/servers/")
"""Folders whose files share a SLURM with fixed names, or servers that take long to start: for one worker each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first; the many short files of tests/unit fill up the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(TOGETHER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs all tests of a file, which share launches, or of a folder of TOGETHER.

    Not `--dist loadgroup`, whose groups pytest-xdist 3.8.0 loses with pytest 9.2 (pytest-dev/pytest-xdist#1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file.rpartition("/")[0] if file.startswith(TOGETHER) else file

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """Workers share it: the first that needs it makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "miniature.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "miniature"
        if not made.exists():
            making = tmp_path_factory.mktemp("making")
            make_miniature(making)
            making.rename(made)
    return Miniature(made / "seed", made / "train.jsonl")
