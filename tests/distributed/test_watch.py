"""A rank that raises, is killed or stops answering ends the other in time, and is named; a long collect ends nobody."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from megatron_urpo.policy.watch import Silences
from tests.distributed.launch import ROOT
from tests.distributed.worker_watch import ABORT_AFTER, DEATHS

Ranks = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("watch")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.worker_watch", str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: Ranks = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("death", DEATHS)
def test_the_other_rank_ends_in_time_and_names_it(ranks: Ranks, death: str, victim: int) -> None:
    survivor = ranks[f"{death} of {victim}: rank {1 - victim}"]
    assert survivor["status"] == 75, survivor["said"]
    # A busy machine may take longer than the limit itself; without a watch it would be the hour of a collective.
    assert survivor["seconds"] < 5 * ABORT_AFTER
    last = survivor["said"].splitlines()[-1]
    assert last.startswith(f"Error: rank {victim} on {socket.gethostname()} "), survivor["said"]
    cause = {
        "raise": "raised ArithmeticError: boom of two lines;",
        "user_error": "raised ConfigError: field: value; rule;",
        "kill": " gone",
        "stop": "gave no sign for " if victim else "gave no answer for ",
    }[death]
    assert cause in last
    assert "Traceback" not in survivor["said"]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_that_raised_keeps_its_own_error(ranks: Ranks, victim: int) -> None:
    own = ranks[f"raise of {victim}: rank {victim}"]
    assert own["status"] == 1
    assert "ArithmeticError: boom" in own["said"]
    assert ranks[f"user_error of {victim}: rank {victim}"]["status"] == 2


def test_a_collect_longer_than_the_limit_ends_nobody(ranks: Ranks) -> None:
    for rank in (0, 1):
        assert ranks[f"long_collect of 0: rank {rank}"]["status"] == 0, ranks[f"long_collect of 0: rank {rank}"]


def test_silence_is_counted_by_ones_own_clock() -> None:
    silences = Silences([1, 2], limit=10, now=100)
    assert silences.look([1, 1], now=103) == []
    assert silences.look([2, 1], now=108) == []
    assert silences.look([3, 1], now=112) == []
    assert silences.look([4, 1], now=114) == [(2, 11)]


def test_a_process_that_stood_still_itself_accuses_nobody() -> None:
    silences = Silences([1], limit=10, now=100)
    assert silences.look([5], now=101) == []
    assert silences.look([5], now=500) == []
    assert silences.look([5], now=504) == []
    assert silences.look([5], now=508) == []
    assert silences.look([5], now=511) == [(1, 11)]
