"""Runs inside vLLM's worker processes, which find it on their PYTHONPATH; it knows torch and vLLM alone.

    --worker-extension-cls megatron_urpo_worker.WeightUpdates

vLLM (0.32) makes the class a base of its worker, and `/collective_rpc` calls a method of it on every rank. An exception
is answered with status 500 and its message; the server goes on.

Weights are loaded by the model's own `load_weights`, into the tensors that the layers hold. On a CPU vLLM would not
look at those: each linear layer, and the head beside tied embeddings, computes from a packed copy that is made once,
and a reload answers with success while the model computes from a mixture of old and new. So no copy is made there.
"""

import base64
import pickle
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import vllm  # type: ignore[import-not-found]
import vllm.model_executor.layers.utils as layer_utils  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d


def _compute_from_weight(layer: Any, remove_weight: bool) -> None:
    """In place of vLLM's function that packs a linear layer's weight on a CPU. To be dropped when vLLM packs it anew
    after a reload, tied heads included."""
    layer.cpu_linear = torch.nn.functional.linear


layer_utils.dispatch_cpu_unquantized_gemm = _compute_from_weight


class WeightUpdates:
    """Its methods are vLLM's worker's too, hence the prefix. `rank` and the like come from there."""

    rank: int
    device: torch.device
    vllm_config: Any
    model_runner: Any

    def urpo_describe(self) -> dict[str, Any]:
        """What the trainer has to know before it uses the server."""
        model, cache = self.vllm_config.model_config, self.vllm_config.cache_config
        return {
            "version": vllm.__version__,
            "model": model.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": model.quantization,
            "logprobs_mode": model.logprobs_mode,
            "vocab_size": model.get_vocab_size(),
            "context": model.max_model_len,
            "cache_tokens": cache.num_gpu_blocks * cache.block_size,
            "tensor": self.vllm_config.parallel_config.tensor_parallel_size,
            "device": self.device.type,
            "releases_memory": model.enable_sleep_mode,
        }

    def urpo_load_folder(self, folder: str) -> None:
        paths = sorted(Path(folder).glob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no safetensors files")
        for path in paths:
            self._load(load_file(path).items())

    def urpo_load_tensors(self, pickled: Sequence[str]) -> None:
        """Base64 of a pickled list of (name, tensor) for each rank; the tensors lie in memory that both share."""
        self._load(pickle.loads(base64.b64decode(pickled[self.rank])))

    def urpo_join_group(
        self, group: str, address: str, port: int, rank: int, world_size: int, backend: str, seconds: float
    ) -> None:
        """The first rank of this server is `rank`; nobody waits longer than `seconds` for the others, now or later."""
        deadline = timedelta(seconds=seconds)
        store = TCPStore(address, port, world_size, False, deadline, wait_for_workers=False)
        place = rank + self.rank
        joined, _ = distributed_c10d._new_process_group_helper(
            world_size,
            place,
            [],
            dist.Backend(backend),
            PrefixStore(group, store),
            group_name=distributed_c10d.GroupName(group),
            timeout=deadline,
        )
        distributed_c10d._world.pg_group_ranks[joined] = {other: other for other in range(world_size)}
        self._groups()[group] = joined

    def urpo_leave_group(self, group: str) -> None:
        dist.destroy_process_group(self._groups().pop(group))

    def urpo_receive(
        self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> None:
        """One broadcast of the tensors' bytes, one after the other without gaps."""
        kinds = [getattr(torch, dtype) for dtype in dtypes]
        sizes = [torch.Size(shape).numel() * kind.itemsize for shape, kind in zip(shapes, kinds, strict=True)]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        dist.broadcast(buffer, src=0, group=self._groups()[group])
        parts = zip(names, torch.split(buffer, sizes), kinds, shapes, strict=True)
        self._load((name, part.view(kind).view(shape)) for name, part, kind, shape in parts)

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Raises ValueError for a name that the model does not know."""
        self.model_runner.model.load_weights(weights)

    def _groups(self) -> dict[str, dist.ProcessGroup]:
        """vLLM gives a base of its worker no constructor."""
        if not hasattr(self, "_urpo_groups"):
            self._urpo_groups: dict[str, dist.ProcessGroup] = {}
        return self._urpo_groups
