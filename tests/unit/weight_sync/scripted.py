"""Servers whose weights are replaced, by script: each call is noted, and fails where the script says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_urpo.protocols import MemoryTag, UpdatableServer


class ScriptedUpdates:
    """Implements `protocols.UpdatableServer`; every error of `errors`, by call, is raised once."""

    def __init__(self, name: str, errors: Mapping[str, Exception] | None = None) -> None:
        self.calls: list[str] = []
        self._name, self._errors = name, dict(errors or {})

    @property
    def name(self) -> str:
        return self._name

    @property
    def tensor(self) -> int:
        return 1

    def begin_update(self) -> None:
        self._note("begin_update")

    def load_folder(self, folder: Path) -> None:
        self._note("load_folder")

    def load_tensors(self, pickled: Sequence[bytes]) -> None:
        self._note("load_tensors")

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        self._note("join_group")

    def leave_group(self, group: str) -> None:
        self._note("leave_group")

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        self._note("receive")

    def end_update(self, version: int) -> None:
        self._note(f"end_update {version}")

    def release(self) -> None:
        self._note("release")

    def resume(self, tag: MemoryTag) -> None:
        self._note(f"resume {tag}")

    def started_anew(self) -> None:
        self._note("started_anew")

    def give_back(self) -> None:
        self._note("give_back")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self._errors:
            raise self._errors.pop(call)


class ScriptedPool:
    """Implements `protocols.ServerPool`: what is lost does not come back."""

    def __init__(self, *servers: ScriptedUpdates) -> None:
        self.servers = list(servers)
        self.given: list[tuple[list[str], int]] = []
        self.lost_names: list[str] = []

    def updatable(self) -> Sequence[UpdatableServer]:
        return list(self.servers)

    def set_aside(self) -> Sequence[UpdatableServer]:
        return list(self.servers)

    def updated(self, servers: Sequence[UpdatableServer], version: int) -> None:
        self.given.append(([server.name for server in servers], version))

    def lost(self, server: UpdatableServer, error: Exception) -> None:
        self.servers = [other for other in self.servers if other is not server]
        self.lost_names.append(server.name)
