"""Settings that every test shares, and what workers of pytest-xdist have in common."""

import fcntl
import os
from typing import Any

import pytest
from hypothesis import settings

from tests.support.miniature import Miniature, make_miniature

# A deadline in milliseconds fails on a busy machine and says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.workers import Launches

    return Launches(config, log)


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
