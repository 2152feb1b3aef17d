"""A sandbox for the attacks of a file."""

from collections.abc import Iterator

import pytest

from megatron_urpo.reward.verifiable.code.sandbox import Sandbox
from tests.support.programs import SMALL, descendants


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    made = Sandbox("namespaces")
    yield made
    made.close()


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    """After the attack the sandbox is alive, empty and works."""
    yield shared
    assert shared.alive
    assert len(descendants(shared.pid)) == 1, "more than the fork server is left"
    ending, output, _ = shared.run("import os; print(os.listdir('/tmp'), input())", "next", SMALL)
    assert (ending.status, output) == (0, b"[] next\n")
