"""One run at a time writes to a run folder: `run.lock` says which, and that it lives.

    {"host": "node3", "pid": 4711, "pid_namespace": "pid:[4026531836]", "started": 1764021600.5, "job": "12", ...}

The file is made in one step with its content (a hard link, which is atomic on network disks as well), and its time of
change is renewed every HEARTBEAT_SECONDS. A lock is taken over, and that is said, where its run cannot live any more:

* its process is gone from this host;
* it is an earlier start of this very SLURM job, which runs once at a time;
* its host is another, and its heartbeat is older than STALE_SECONDS. Ages are read off the disk's own clock.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.parallel import Parallel

NAME = "run.lock"
HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 180.0


@contextlib.contextmanager
def run_lock(
    run_dir: Path, parallel: Parallel, tell: Callable[[str], None], heartbeat: float = HEARTBEAT_SECONDS
) -> Iterator[None]:
    """Collective; rank 0 holds the lock. Raises ConfigError where another run that may live has it."""
    held = parallel.from_rank0(lambda: _acquire_then_tell(run_dir, tell))
    stop = threading.Event()
    path = run_dir / NAME
    if parallel.rank == 0:
        threading.Thread(target=_beat, args=(path, stop, heartbeat), name="run-lock", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        if parallel.rank == 0 and _read(path) == held:
            path.unlink()


def acquire(run_dir: Path) -> tuple[dict[str, Any], str | None]:
    """The lock that is now this process's, and the older one that was taken over, if one was. Raises ConfigError."""
    path, mine, dead = run_dir / NAME, _own(), None
    with _beside(run_dir, mine) as beside:
        while True:
            try:
                os.link(beside, path)
                return mine, dead
            except FileExistsError:
                found = _read(path)
                dead = _why_dead(path, found, mine, now=beside)
            if dead is not None:
                _remove_dead(path, found, aside=beside.with_suffix(".dead"))


def find_dead_lock(run_dir: Path, job_state: Callable[[str], str | None]) -> str | None:
    """For before a run is queued: the lock that it would take over now, if there is one; nothing is changed.

    `job_state`: what SLURM says of a job that has not ended. Raises ConfigError where a run that may live has the
    folder; a job that waits to be started again has it too, without a sign of life.
    """
    path, mine = run_dir / NAME, _own()
    if not path.exists():
        return None
    lock = _read(path)
    number = str(lock.get("job") or "") if lock else ""
    state = job_state(number) if number.isdecimal() else None
    if lock and state:
        raise ConfigError(
            f"run_dir: {run_dir} is in use by job {number} ({state}), last on {lock.get('host')}; `scancel {number}`,"
            " or give another run_dir"
        )
    with _beside(run_dir, mine) as beside:
        return _why_dead(path, lock, mine, now=beside)


@contextlib.contextmanager
def _beside(run_dir: Path, mine: dict[str, Any]) -> Iterator[Path]:
    """A file beside the lock with `mine`: what becomes the lock, and what shows the time of the disk's clock."""
    beside = run_dir / f"{NAME}.{socket.gethostname()}.{os.getpid()}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(mine) + "\n")
    except OSError as error:
        raise ConfigError(
            f"run_dir: {run_dir} cannot be written to ({error}); give a folder that this user may write to, on a disk"
            " with room"
        ) from None
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _acquire_then_tell(run_dir: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    mine, dead = acquire(run_dir)
    if dead is not None:
        tell(f"took over {dead}")
    return mine


def _own() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_namespace": _pid_namespace(),
        "started": psutil.Process().create_time(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _why_dead(path: Path, lock: dict[str, Any] | None, mine: dict[str, Any], now: Path) -> str | None:
    """The lock and how its run ended, in words; None where it is gone. Raises ConfigError where it may be alive."""
    try:
        os.utime(now)
        age = now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None
    if lock is None and not path.exists():
        return None
    if lock is None:  # nobody writes half a lock: it was made by hand, or damaged
        raise ConfigError(f"run_dir: {path} cannot be read; if no run uses the folder, remove it")
    who = f"process {lock.get('pid')} on {lock.get('host')}" + (f", job {lock['job']}" if lock.get("job") else "")
    is_here = all(lock.get(name) == mine[name] for name in ("host", "pid_namespace"))
    if is_here and not _lives(lock):
        return f"{path} of {who}, which is gone"
    if mine["job"] and lock.get("job") == mine["job"] and int(lock.get("restart") or 0) < mine["restart"]:
        return f"{path} of an earlier start of this job ({who})"
    if not is_here and age > STALE_SECONDS:
        return f"{path} of {who}, which gave no sign for {age:.0f} seconds"
    wait = (
        "stop it"
        if is_here
        else f"stop it, or wait: without a sign of it for {STALE_SECONDS:.0f} seconds it counts as dead"
    )
    raise ConfigError(
        f"run_dir: {path.parent} is in use by {who} (last sign {max(age, 0):.0f} seconds ago); {wait}, or give another"
        " run_dir"
    )


def _remove_dead(path: Path, judged: dict[str, Any] | None, aside: Path) -> None:
    """Of two that find a lock dead one may have made its own already: what was moved is looked at once more."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != judged:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _lives(lock: dict[str, Any]) -> bool:
    """Whether the process is there and is the one that made the lock: numbers come again."""
    try:
        process = psutil.Process(int(lock["pid"]))
        same = bool(abs(process.create_time() - float(lock["started"])) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        lock = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return lock if isinstance(lock, dict) else None


def _pid_namespace() -> str:
    """Two containers of one host number their processes apart. Empty where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _beat(path: Path, stop: threading.Event, heartbeat: float) -> None:
    while not stop.wait(heartbeat):
        with contextlib.suppress(OSError):  # a disk that is away for a moment must not end a run
            os.utime(path)
