"""A folder that appears under its name only when it is whole and on disk, or not at all.

It is written beside its place as NAME.partial, which one process at a time holds; whoever is killed leaves it, and the
next one begins anew. Nothing that reads checkpoints accepts it: its config.json or state comes last.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_urpo.config import ConfigError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def check_target(target: Path, num_bytes: int) -> None:
    """Raises ConfigError where `target` exists, cannot be made or has less room than `num_bytes`."""
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists; give another path, or remove it first")
    place = next(path for path in target.absolute().parents if path.exists())
    if not place.is_dir():
        raise ConfigError(f"{target} cannot be a folder, since {place} is a file; give another path")
    total, _, free = shutil.disk_usage(place)  # a kernel's own file system has no size, and says itself what is wrong
    if os.access(place, os.W_OK) and total and free < num_bytes:
        raise ConfigError(
            f"{target} needs {_size(num_bytes)}, and {place} has {_size(free)} free; make room or give another path"
        )


@contextlib.contextmanager
def written_aside(target: Path, replace: bool = False) -> Iterator[Path]:
    """The folder to write into; it becomes `target`, in one rename, when the block ends without an error.

    With `replace` an older `target` goes just before.

    Raises ConfigError, with `target` untouched, for a full or read-only disk and for a folder that another process
    writes.
    """
    aside = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _held(aside):
            try:
                yield aside
                _sync_tree(aside)
                if replace:
                    shutil.rmtree(target, ignore_errors=True)
                aside.rename(target)
                _sync(target.parent)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    except OSError as error:
        raise ConfigError(_explain(error, target)) from None


@contextlib.contextmanager
def _held(aside: Path) -> Iterator[None]:
    """Makes the folder empty. The lock is of the parent's `.NAME.lock`, since the folder itself comes and goes."""
    lock = aside.with_name(f".{aside.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{aside} is being written by another process; wait for it, or give another path"
            ) from None
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield
        finally:
            lock.unlink(missing_ok=True)


def _explain(error: OSError, target: Path) -> str:
    reason = " ".join(str(error.strerror or error).split())
    if error.errno in _FULL:
        return f"{target} does not fit on its disk ({reason}); nothing was left there; make room or give another path"
    if error.errno in _READ_ONLY:
        return f"{target} cannot be written ({reason}); give a path where you may write"
    return f"{target} cannot be written ({reason}: {error.filename}); nothing was left there"


def _sync_tree(folder: Path) -> None:
    """Files that a writer did not sync itself are small; a second sync of the others costs nothing."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
