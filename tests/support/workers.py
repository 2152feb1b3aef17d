"""Which tests one worker of pytest-xdist runs, where several share the work."""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/cluster", "tests/servers")
"""Folders whose files share a SLURM with fixed names, or servers that take long to start."""


class Launches(LoadScopeScheduling):
    """A file is run by one worker, since its tests share launches, and so is a whole folder of TOGETHER.

    Not `--dist loadgroup`, whose groups pytest-xdist 3.8.0 loses with pytest 9.2 (pytest-dev/pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        folder, _, _ = file.rpartition("/")
        return folder if folder in TOGETHER else file
