"""The engine of a run and the place where its weights go."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from megatron_urpo.config import Config
from megatron_urpo.inference.connect import connect
from megatron_urpo.inference.embedded import EmbeddedEngine
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.protocols import WeightReceiver
from megatron_urpo.weight_sync.broadcast import BroadcastTransport
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.disk import DiskTransport
from megatron_urpo.weight_sync.servers import ServerWeights
from megatron_urpo.weight_sync.tensor import TensorTransport
from megatron_urpo.weight_sync.transport import Transport

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MIB = 2**20


@contextlib.contextmanager
def open_engine(
    config: Config,
    shape: ModelShape,
    stop_token_ids: Sequence[int],
    tell: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[EmbeddedEngine | FleetEngine, WeightReceiver]]:
    """Both for rank 0, closed on every way out; the engine has no weights yet. Raises ConfigError and EngineError.

    `tell` gets a line for everything that happens to a server; `stopping` is for an engine in this process.
    """
    with contextlib.closing(connect(config, stop_token_ids, shape.vocab_size, tell, stopping)) as engine:
        if isinstance(engine, EmbeddedEngine):
            yield engine, engine
            return
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        caller = Caller()
        receiver = ServerWeights(
            engine,
            caller,
            _transport(config, caller, device),
            shapes=hf_shapes(shape),
            dtype=DTYPES[config.model.dtype],
            device=device,
            bucket_bytes=config.weight_sync.bucket_mib * MIB,
        )
        with contextlib.closing(receiver):
            yield engine, receiver


def _transport(config: Config, caller: Caller, device: torch.device) -> Transport:
    sync = config.weight_sync
    if sync.transport == "broadcast":
        return BroadcastTransport(caller, sync.address, device, sync.timeout_seconds)
    if sync.transport == "tensor":
        return TensorTransport(caller)
    folder = config.run_dir / "weights_in_transit"
    if sync.folder is not None:  # others may use it too
        folder = sync.folder / "-".join(("weights_of", *config.run_dir.absolute().parts[1:]))
    return DiskTransport(caller, folder, config.model.path)
