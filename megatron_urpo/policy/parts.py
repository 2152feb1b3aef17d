"""Each rank's part of a checkpoint: a copy in host memory that a thread writes while training goes on.

megatron-core plans what each rank writes and in which format (`torch_dist`); its own writers are replaced. They fork
the trainer, threads, sockets and all, and start a manager process by `spawn`, which takes seconds and asks every script
that trains for `if __name__ == "__main__"`; killed with SIGKILL the trainer leaves them behind, and they write on into
a folder that a resumed run uses again. A thread dies with its process. Tensors and hashes are written without the
interpreter's lock, so it takes little from the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, _StorageInfo
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from megatron_urpo.policy.durable import FileFacts, HashedFile


@dataclass
class Parts:
    """A save whose plan is made and whose bytes are copied.

    `write` writes this rank's file and returns its facts by name; any thread may call it. `finish` is collective and
    writes the description of all parts, once every rank's `write` has returned.
    """

    write: Callable[[], dict[str, FileFacts]]
    finish: Callable[[], None]


class HostCopyStrategy(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """megatron-core's `torch_dist` strategy with `PartWriter` in place of its writer: one file a rank."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> AsyncRequest:
        """Collective. The request's `async_fn` is the part's `write`."""
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        writer = PartWriter(Path(checkpoint_dir))
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        planned, *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(state, False), writer, None, coordinator_rank=0, planner=planner
        )
        return AsyncRequest(writer.write, (), [lambda: save_state_dict_async_finalize(*planned)])


class PartWriter(FileSystemWriterAsync):  # type: ignore[misc]
    """Copies what the plan gives this rank when it is told the plan; writes it when asked to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, thread_count=1)
        self._folder, self._name = folder, ""
        self._items: list[tuple[Any, Any]] = []
        self._results: list[WriteResult] = []

    def prepare_write_data(self, plan: SavePlan, planner: Any) -> None:
        self._name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        self._items = [(item, _copy(planner.resolve_data(item))) for item in plan.items]

    def write(self) -> dict[str, FileFacts]:
        """The file is on disk when this returns; the copy is given back."""
        if not self._items:
            return {}
        file = HashedFile(self._folder / self._name)
        try:
            for item, data in self._items:
                self._results.append(self._write_item(file, item, data))
            facts = file.finish()
        except Exception:
            if file.error is not None:
                raise file.error from None
            raise
        finally:
            file.close()
            self._items = []
        return {self._name: facts}

    def _write_item(self, file: HashedFile, item: WriteItem, data: Any) -> WriteResult:
        offset = file.tell()
        if item.type == WriteItemType.BYTE_IO:
            file.write(data.getbuffer())
        else:
            torch.save(data, file)  # type: ignore[arg-type]
        length = file.tell() - offset
        return WriteResult(item.index, length, _StorageInfo(self._name, offset, length))

    def retrieve_write_results(self) -> list[WriteResult]:
        return self._results


def _copy(data: Any) -> Any:
    """Tensors in host memory that no update changes; what is not a tensor is a buffer of its own already."""
    if not torch.is_tensor(data):
        return data
    data = data.detach()
    return data.clone() if data.device.type == "cpu" else data.to("cpu")
