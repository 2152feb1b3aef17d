"""Ranks watch each other, so that one that is gone ends all of them soon, and is named.

A thread of each rank raises its own count in the launcher's store; rank 0 looks at all counts, the others at rank 0's.
What is found first is the verdict of all: a rank that raised an error wrote it there itself, one that was killed or
stopped is found because its count stands still. The thread beats while its rank waits for an hour in `from_rank0`, so
a long rollout is no silence. Counts are compared with one's own clock alone; clocks of hosts need not agree.

Of `abort_after` seconds, silence may last 0.5, a look comes every 0.1, and a rank that learns of the verdict has 0.2 to
end by itself before its thread ends the process.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_urpo.protocols import RankLost, RankZeroError

SILENCE, LOOK, GRACE = 0.5, 0.1, 0.2
LOST = "rank {rank} on {host} {cause}; the run goes on from its last checkpoint when it is started again"


class Silences:
    """Which of `ranks` have been silent for longer than `limit` seconds, by counts that should rise."""

    def __init__(self, ranks: Sequence[int], limit: float, now: float) -> None:
        self._limit = limit
        self._counts = dict.fromkeys(ranks, 0)
        self._changed = dict.fromkeys(ranks, now)
        self._looked = now

    def look(self, counts: Sequence[int], now: float) -> list[tuple[int, float]]:
        """(rank, seconds of silence) of each; `counts` in the order of ranks."""
        if now - self._looked > self._limit / 2:  # it was this process that stood still, not they
            self._changed = dict.fromkeys(self._changed, now)
        self._looked = now
        for rank, count in zip(self._counts, counts, strict=True):
            if count != self._counts[rank]:
                self._counts[rank], self._changed[rank] = count, now
        return [(rank, now - since) for rank, since in self._changed.items() if now - since > self._limit]


class Watch:
    """Runs from its creation, which waits for all ranks, until `leave`.

    `store` must be a connection of the thread's own: one that waits for something would hold up the beats.
    """

    def __init__(
        self,
        store: dist.Store,  # type: ignore[name-defined]
        rank: int,
        world_size: int,
        abort_after: float,
        join_timeout: timedelta,
    ) -> None:
        self._store, self._rank, self._world_size, self._abort_after = store, rank, world_size, abort_after
        self._watched = list(range(1, world_size)) if rank == 0 else [0]
        store.set_timeout(join_timeout)
        store.set(f"host/{rank}", socket.gethostname())
        # Known beforehand: a host that is gone cannot be asked for its name. Rank 0's store goes with rank 0.
        self._hosts = {other: store.get(f"host/{other}").decode() for other in self._watched}
        if rank == 0:
            store.set("ready", "")
        store.get("ready")  # nobody is silent before all are there
        store.set_timeout(timedelta(seconds=SILENCE * abort_after))
        self._hosts[rank] = socket.gethostname()
        self._verdict, self._is_teller, self._accused = "", True, False
        self._known, self._leaving, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._num_looks = 0
        self._threads = [
            threading.Thread(target=work, name=f"rank-watch-{work.__name__}", daemon=True)
            for work in (self._talk, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def leaving(self) -> None:
        """From here on a store that is gone is no loss: its rank was done first."""
        self._leaving.set()

    def leave(self) -> None:
        self._stop.set()
        self._threads[0].join(LOOK * self._abort_after)  # it may wait for a store that answers nobody

    def explain(self, error: BaseException) -> RankLost | None:
        """What to raise instead of `error` where it only follows from another rank's end; else tells the others."""
        if isinstance(error, RankZeroError):
            self._told()  # rank 0 says it
            return None
        if is_broken_exchange(error) and self._known.wait((SILENCE + 4 * LOOK) * self._abort_after):
            return RankLost(self._verdict, self._is_teller)
        if not self._accused:
            self._accused = True
            self._pronounce(self._rank, f"raised {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            self._told()
            if self._rank == 0:  # its store may end with this process: the others must have read it
                deadline = time.monotonic() + GRACE * self._abort_after
                while time.monotonic() < deadline and self._told(0) < self._world_size:
                    time.sleep(0.05)
        return None

    def _told(self, more: int = 1) -> int:
        """Number of ranks that know the verdict, after `more` of them were added."""
        try:
            return int(self._store.add("told", more))
        except RuntimeError:  # the store is gone: nobody is left to tell
            return self._world_size

    def _pronounce(self, rank: int, cause: str) -> None:
        """The first verdict stands."""
        text = json.dumps({"rank": rank, "host": self._hosts.get(rank, "an unknown host"), "cause": cause})
        try:
            self._store.compare_set("verdict", "", text)
        except RuntimeError as error:
            sys.stderr.write(f"rank {self._rank} cannot tell the others: {error}\n")

    def _talk(self) -> None:
        silences = Silences(self._watched, SILENCE * self._abort_after, time.monotonic())
        try:
            while not self._stop.wait(LOOK * self._abort_after):
                self._store.add(f"beat/{self._rank}", 1)
                if self._store.check(["verdict"]):
                    break
                self._num_looks += 1
                counts = [int(self._store.add(f"beat/{rank}", 0)) for rank in self._watched]
                for rank, seconds in silences.look(counts, time.monotonic())[:1]:
                    self._pronounce(
                        rank, f"gave no sign for {seconds:.0f} seconds (killed, stopped, or its host is gone)"
                    )
            if self._stop.is_set():
                return
            found = json.loads(self._store.get("verdict"))
            self._told()
        except RuntimeError as error:  # of torch's store: lost connection, or no answer in time
            if self._leaving.is_set() or self._stop.is_set():
                return
            found = {"rank": 0, "host": self._hosts[0], "cause": f"is gone, or its launcher: {_first_line(error)}"}
        self._end(found)

    def _guard(self) -> None:
        """Ends this rank where the store itself stands still: torch waits for its answer without a time-out."""
        silences = Silences([0], SILENCE * self._abort_after, time.monotonic())
        while not self._stop.wait(LOOK * self._abort_after) and not self._known.is_set():
            for rank, seconds in silences.look([self._num_looks], time.monotonic()):
                cause = f"gave no answer for {seconds:.0f} seconds, or its launcher (stopped, or its host is gone)"
                self._end({"rank": rank, "host": self._hosts[rank], "cause": cause})

    def _end(self, found: dict[str, Any]) -> None:
        self._verdict = LOST.format(**found)
        self._is_teller = self._rank == (1 if found["rank"] == 0 else 0)
        self._known.set()
        if self._stop.wait(GRACE * self._abort_after):
            return
        # The main thread hangs in an exchange that will not come about; nothing can raise an error there.
        if self._is_teller:
            sys.stderr.write(f"Error: {self._verdict}\n")
            sys.stderr.flush()
        os._exit(RankLost.exit_code)


def is_broken_exchange(error: BaseException) -> bool:
    """Whether it may be no more than what gloo or NCCL say when another rank has gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
