"""Files that are on disk when a call returns, and what tells later whether they still are what was written."""

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHUNK = 2**22


@dataclass(frozen=True)
class FileFacts:
    """A file's size and the SHA-256 of its bytes in hexadecimal digits."""

    num_bytes: int
    sha256: str


class HashedFile(io.IOBase):
    """A file that is written once from front to back; as much of a binary stream as torch's writers ask for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self.error: OSError | None = None
        """What writing met; torch's writers turn it into an error of their own that says nothing."""

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        self._digest.update(view)
        try:
            self._file.write(view)
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, str(self._path))
            raise self.error from None
        self._num_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self._num_bytes

    def flush(self) -> None:
        """Nothing waits for it before `finish`."""

    def finish(self) -> FileFacts:
        """On disk when this returns."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        return FileFacts(self._num_bytes, self._digest.hexdigest())

    def close(self) -> None:
        """Without a word where what is left in the buffer cannot be written: `write` or `finish` said so."""
        with contextlib.suppress(OSError):
            self._file.close()


def write_durable(path: Path, content: bytes) -> FileFacts:
    """Writes a small file; on disk when this returns, its folder's entry once that is synced too."""
    file = HashedFile(path)
    try:
        file.write(content)
        return file.finish()
    finally:
        file.close()


def file_facts(path: Path, sync: bool = False) -> FileFacts:
    """Of a file that is there; with `sync` it is on disk when this returns."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            num_bytes += len(chunk)
        if sync:
            os.fsync(file.fileno())
    return FileFacts(num_bytes, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Makes the names of a folder's files, and renames in it, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
