"""What a fleet needs of one server, whatever program it is."""

from pathlib import Path
from typing import Protocol

from megatron_urpo.inference.process import ServerProcess
from megatron_urpo.protocols import UpdatableServer
from megatron_urpo.types import Completion, GenerationRequest


class BadAnswer(RuntimeError):
    """A server answered with something that is no completion of what it was asked."""


class Client(Protocol):
    """Speaks to one server."""

    @property
    def url(self) -> str: ...

    @property
    def updates(self) -> UpdatableServer:
        """The same server as weight updates see it."""

    async def generate(self, request: GenerationRequest, index: int, seconds: float) -> Completion:
        """Completion `index` of `request`. Raises ServerGone, ServerRefused and BadAnswer."""

    async def check(self, seconds: float) -> None:
        """Returns when the server has generated a token. Raises ServerGone and ServerRefused."""

    async def capacity(self, seconds: float) -> int:
        """Tokens that its cache holds. Raises ServerGone, ServerRefused, and ConfigError of one that cannot serve."""

    def describe(self) -> str:
        """Program, version and precision; known once `capacity` was asked."""

    async def close(self) -> None: ...


class Launcher(Protocol):
    """Starts a server that is this run's own."""

    def start(self, log: Path) -> ServerProcess: ...
