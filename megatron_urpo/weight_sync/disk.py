"""Weights through files that every server can read: slow, simple, and what the other ways are compared with."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_urpo.protocols import UpdatableServer
from megatron_urpo.weight_sync.buckets import Bucket
from megatron_urpo.weight_sync.calls import Caller


class DiskTransport:
    """Implements `transport.Transport`: one file a bucket, loaded when all are written, removed afterwards.

    `model` is the folder whose config.json is put beside them, since a server looks for one.
    """

    def __init__(self, caller: Caller, folder: Path, model: Path) -> None:
        self._caller, self._folder, self._model = caller, folder.absolute(), model
        self._servers: tuple[UpdatableServer, ...] = ()
        self._count = 0

    def buffer(self, num_bytes: int, device: torch.device) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def open(self, servers: Sequence[UpdatableServer]) -> None:
        self.close()
        self._servers, self._count = tuple(servers), 0
        self._folder.mkdir(parents=True)
        shutil.copy2(self._model / "config.json", self._folder)

    def send(self, bucket: Bucket, buffer: Tensor) -> "_Written":
        path = self._folder / f"bucket_{self._count:05d}.safetensors"
        self._count += 1
        save_file(dict(bucket.views(buffer)), path, {"format": "pt"})
        return _Written()

    def finish(self) -> None:
        self._caller.each(self._servers, lambda server: server.load_folder(self._folder))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _Written:
    def wait(self) -> None:
        """The file is there when `send` returns."""
