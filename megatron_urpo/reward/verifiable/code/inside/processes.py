"""What /proc says of other processes: who descends from whom, how many a user has, how much memory they hold."""

import os
from collections.abc import Iterable

_PAGE = os.sysconf("SC_PAGE_SIZE")


def descendants() -> list[int]:
    """Every process below this one."""
    parents = {int(pid): fields[0] for pid in _pids() if (fields := _status(pid)) is not None}
    found, waiting = [], [os.getpid()]
    while waiting:
        parent = waiting.pop()
        waiting += (children := [pid for pid, of in parents.items() if of == parent])
        found += children
    return found


def children() -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in _pids() if (_status(pid) or (0, 0))[0] == own]


def count_of(user: int) -> int:
    """Processes and threads of a user, which is what the limit on processes counts."""
    count = 0
    for pid in _pids():
        fields = _status(pid)
        if fields is not None and fields[1] == user:
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def hold_more(pids: Iterable[int], limit: int) -> bool:
    """Whether processes hold more than `limit` bytes of memory together, what they share counted once."""
    resident = {pid: _resident(pid) for pid in pids}
    if sum(resident.values()) <= limit:
        return False  # nearly always: to know what is shared takes far longer
    return sum(_share(pid, most) for pid, most in resident.items()) > limit


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _status(pid: str) -> tuple[int, int] | None:
    """(parent, user) of a process; None where it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        return parent, os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _resident(pid: int) -> int:
    """Bytes in memory, shared ones too; 0 where it has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _share(pid: int, resident: int) -> int:
    """Bytes in memory, each divided by the processes that have it; all of them where the process hides its maps."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return resident if os.path.exists(f"/proc/{pid}") else 0
