"""The tasks of an srun meet in a shared folder: who comes shows that it is shared, and each file's time shows a clock.

Every task writes a small file and reads the time that the file system gave it. That clock is one and the same for all,
so two hosts whose own clocks are off by different amounts disagree by the difference.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_urpo.doctor.facts import Meeting

WAIT_SECONDS = 20.0
POLL_SECONDS = 0.1


def meet(
    folder: Path, environment: Mapping[str, str] = os.environ, wait_seconds: float = WAIT_SECONDS
) -> Meeting | None:
    """What this task saw; None outside an srun of several tasks.

    The first task removes the files when all have read them.
    """
    count = int(environment.get("SLURM_NTASKS", environment.get("SLURM_NPROCS", "1")))
    if "SLURM_PROCID" not in environment or count < 2:
        return None
    job = f"{environment.get('SLURM_JOB_ID', '0')}-{environment.get('SLURM_STEP_ID', '0')}"
    place = folder / f".doctor-{job}"
    place.mkdir(parents=True, exist_ok=True)
    mine = place / f"task-{environment['SLURM_PROCID']}.json"
    mine.write_text("{}")
    offset = time.time() - mine.stat().st_mtime
    aside = mine.with_suffix(".partial")
    aside.write_text(json.dumps({"host": socket.gethostname(), "offset": offset}))
    aside.rename(mine)
    _wait(lambda: len(_seen(place)) == count, wait_seconds)
    seen = _seen(place)
    mine.with_suffix(".left").touch()
    if environment["SLURM_PROCID"] == "0":
        _wait(lambda: len(list(place.glob("*.left"))) == len(seen), wait_seconds)
        shutil.rmtree(place, ignore_errors=True)  # a task that comes later finds nobody, and says so
    return Meeting(num_tasks=count, offsets=dict(seen.values()), num_seen=len(seen))


def _wait(until: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _seen(place: Path) -> dict[str, tuple[str, float]]:
    found = {}
    for path in place.glob("task-*.json"):
        row = json.loads(path.read_text() or "{}")
        if row:
            found[path.name] = (str(row["host"]), float(row["offset"]))
    return found
