"""Files that go to disk while they are written."""

import os
from pathlib import Path

import pytest

from megatron_urpo.policy.weights import output
from megatron_urpo.policy.weights.output import OutputFile


@pytest.fixture(autouse=True)
def every_write_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SYNC_BYTES", 1)


def test_bytes_lie_where_they_were_put(tmp_path: Path) -> None:
    file = OutputFile(tmp_path / "file")
    for at in (8, 0, 4):
        file.write(at, bytes([at]) * 4)
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes([0] * 4 + [4] * 4 + [8] * 4)


def test_a_failed_sync_is_told_to_the_one_who_writes() -> None:
    """The kernel takes bytes for /dev/null and refuses to sync it."""
    file = OutputFile(Path(os.devnull))
    with pytest.raises(OSError, match="Invalid argument"):
        write_often(file)
    file.abandon()


def write_often(file: OutputFile) -> None:
    for _ in range(100_000):
        file.write(0, b"x")
