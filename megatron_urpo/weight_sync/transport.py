"""How a bucket gets from a buffer of rank 0 into the servers."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from megatron_urpo.protocols import UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket


class Sending(Protocol):
    """A bucket on its way."""

    def wait(self) -> None:
        """Returns when every server has it and the buffer may be filled anew. Raises ServersFailed."""


class Transport(Protocol):
    """One way to send. An update is `open`, `send` for every bucket (one after the other has arrived), `finish`."""

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        """Memory to send from, [num_bytes] of uint8."""

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        """Prepares to send to exactly these. Raises ServersFailed."""

    def send(self, bucket: Bucket, buffer: Tensor) -> Sending: ...

    def finish(self) -> None:
        """All buckets have been sent. Raises ServersFailed."""

    def close(self) -> None:
        """Gives back what `open` took, also after an update that broke off."""
