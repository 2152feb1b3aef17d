"""A file that goes to disk while it is written, so that the wait at its end is short."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

SYNC_BYTES = 128 * 2**20


class OutputFile:
    """Bytes at places. The kernel alone would begin to write them when gigabytes have gathered, or at the last sync."""

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=0)
        self._thread = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._unsynced = 0

    def write(self, at: int, data: bytes | memoryview) -> None:
        """Raises OSError: of these bytes, or of earlier ones on their way to the disk."""
        rest = memoryview(data)
        while rest:  # a part only may be taken: at 2 GiB, on a disk that fills up
            count = os.pwrite(self._file.fileno(), rest, at)
            rest, at = rest[count:], at + count
            self._unsynced += count
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._finish_sync()
            self._syncing = self._thread.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def close(self) -> None:
        """Once it returns the file is on disk."""
        try:
            self._finish_sync()
            os.fsync(self._file.fileno())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._thread.shutdown()
        self._file.close()

    def _finish_sync(self) -> None:
        # The kernel tells of a failure once.
        if self._syncing is not None:
            self._syncing.result()
            self._syncing = None
