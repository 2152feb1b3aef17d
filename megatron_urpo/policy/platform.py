"""Lets stock megatron-core 0.16.1 run on a machine without CUDA; does nothing where CUDA is.

megatron-core names the device `cuda` in its sources instead of asking for it. Each shim below stands for one kind of
such a place; `CALL_SITES` lists the places that a training step and a checkpoint really reach, and a test compares it
with what `AUDIT` saw, so that an upgrade of megatron-core fails loudly. Remove a shim when its list is empty.

The literal `device="cuda"` is rewritten by giving the few modules that use it a stand-in for their global `torch`.
A TorchFunctionMode would do the same for 4-7 microseconds on every tensor operation of the process.
"""

import contextlib
import ctypes
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU = torch.device("cpu")

AUDIT: dict[str, set[str]] = defaultdict(set)
"""Shim -> the `file:line` of every place in megatron-core that used it in this process."""

CALL_SITES: dict[str, set[str]] = {
    "torch.cuda.current_device": {
        "distributed/param_and_grad_buffer.py:800",
        "distributed/param_and_grad_buffer.py:806",
        "models/common/embeddings/rotary_pos_embedding.py:162",
        "tensor_parallel/layers.py:552",
        "tensor_parallel/mappings.py:141",
        "tensor_parallel/mappings.py:181",
        "pipeline_parallel/p2p_communication.py:190",
        "pipeline_parallel/p2p_communication.py:194",
        "pipeline_parallel/p2p_communication.py:198",
        "pipeline_parallel/p2p_communication.py:202",
        "pipeline_parallel/p2p_communication.py:313",
        "pipeline_parallel/p2p_communication.py:321",
        "utils.py:631",
    },
    "torch.cuda.synchronize": {
        "pipeline_parallel/p2p_communication.py:242",
        "pipeline_parallel/p2p_communication.py:398",
    },
    'device="cuda"': {
        "optimizer/clip_grads.py:103",
        "optimizer/clip_grads.py:174",
        "optimizer/optimizer.py:481",
        "optimizer/optimizer.py:485",
        "pipeline_parallel/schedules.py:596",
        "pipeline_parallel/schedules.py:2138",
        "utils.py:1207",
    },
    "Tensor.cuda": {"models/common/language_module/language_module.py:244"},
    "Tensor.type": {
        "optimizer/clip_grads.py:167",
        "optimizer/distrib_optimizer.py:361",
        "optimizer/distrib_optimizer.py:420",
        "optimizer/distrib_optimizer.py:582",
    },
}

_MODULES_WITH_LITERAL_DEVICE = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.utils",
)
_FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange")

_installed = False


def install() -> None:
    """Puts the shims in place, once. Call it before a megatron-core object is built."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    _shim_torch_cuda()
    _shim_literal_device()
    _shim_tensor_methods()
    _shim_rng_tracker()
    _define_missing_gemm()
    _keep_freed_memory()


def _note(shim: str) -> None:
    frame = sys._getframe(1)
    while frame.f_back is not None and "/megatron/core/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if "/megatron/core/" in frame.f_code.co_filename:
        AUDIT[shim].add(f"{frame.f_code.co_filename.split('/megatron/core/')[-1]}:{frame.f_lineno}")


def _from_megatron() -> bool:
    return "/megatron/core/" in sys._getframe(2).f_code.co_filename


def _shim_torch_cuda() -> None:
    def replace(name: str, function: Callable[..., Any]) -> None:
        def shim(*args: Any, **kwargs: Any) -> Any:
            _note(f"torch.cuda.{name}")
            return function(*args, **kwargs)

        setattr(torch.cuda, name, shim)

    replace("current_device", lambda: _CPU)
    replace("synchronize", lambda *_, **__: None)
    replace("get_rng_state", lambda *_, **__: torch.get_rng_state())


class _TorchWithoutCuda:
    """`torch`, but a factory that is asked for device `cuda` makes its tensor on the CPU."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name in _FACTORIES:
            value = self._on_cpu(value)
        object.__setattr__(self, name, value)
        return value

    @staticmethod
    def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
        def shim(*args: Any, **kwargs: Any) -> Any:
            if str(kwargs.get("device", "")).startswith("cuda"):
                _note('device="cuda"')
                kwargs["device"] = _CPU
            return factory(*args, **kwargs)

        return shim


def _shim_literal_device() -> None:
    stand_in = _TorchWithoutCuda()
    for name in _MODULES_WITH_LITERAL_DEVICE:
        importlib.import_module(name).__dict__["torch"] = stand_in


def _shim_tensor_methods() -> None:
    """The optimizers compare `param.type()` with `torch.cuda.FloatTensor`; a tied output weight calls `.cuda()`."""
    plain_type = torch.Tensor.type
    plain_cuda = torch.Tensor.cuda

    def type_shim(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = plain_type(self, *args, **kwargs)
        if isinstance(answer, str) and answer.startswith("torch.") and answer.count(".") == 1 and _from_megatron():
            _note("Tensor.type")
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    def cuda_shim(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _from_megatron():
            _note("Tensor.cuda")
            return self
        return plain_cuda(self, *args, **kwargs)

    torch.Tensor.type = type_shim  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = cuda_shim  # type: ignore[method-assign, assignment]


def _shim_rng_tracker() -> None:
    """The tracker of tensor-parallel random states seeds and reads the CUDA generator; this one uses the CPU's."""
    import megatron.core.tensor_parallel.random as mcore_random

    class CpuRngStatesTracker(mcore_random.CudaRNGStatesTracker):  # type: ignore[misc]
        def add(self, name: str, seed: int) -> None:
            if seed in self.seeds_ or name in self.states_:
                raise ValueError(f"random state {name!r} or seed {seed} was added before")
            self._is_initialized = True
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextlib.contextmanager
        def fork(self, name: str = mcore_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            outside = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outside)

    mcore_random.CudaRNGStatesTracker = CpuRngStatesTracker
    # Recomputation saves and restores "the CUDA state" around a layer; the CPU state is saved beside it already.
    mcore_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    mcore_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _define_missing_gemm() -> None:
    """moe_utils.py:1192 asks whether `te_general_gemm` is None, but without Transformer Engine the name is not bound.

    Goes when the failed import binds it.
    """
    moe_utils = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Lets activations reuse the memory of those before; no shim, but of use on CPUs alone.

    glibc gives blocks above 32 MiB back as soon as they are freed, and the next one of that size is zeroed by the
    kernel page by page, which takes longer than the operator that fills it. Other C libraries do not have `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
