"""Real servers as weight updates see them, models to push into them, and whether they serve what was pushed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.ports import choose_ports
from megatron_urpo.inference.sglang.launch import SGLangLauncher
from megatron_urpo.inference.sglang.update import SGLangUpdates
from megatron_urpo.policy.hf.shape import read_shape
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.protocols import UpdatableServer
from megatron_urpo.weight_sync.broadcast import BroadcastTransport
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.disk import DiskTransport
from megatron_urpo.weight_sync.servers import ServerWeights
from megatron_urpo.weight_sync.tensor import TensorTransport
from megatron_urpo.weight_sync.transport import Transport
from tests.servers.process import CPU_ENVIRONMENT, Server, servers_config
from tests.servers.test_environment import NUM_NEW_TOKENS, PROMPTS, RELATIVE_ERROR, post
from tests.support.models import make_model

P = ParamSpec("P")
T = TypeVar("T")
CPU = torch.device("cpu")
TRANSPORTS = ("disk", "broadcast", "tensor")
BUCKET_BYTES = 40_000  # the embedding alone has 32,512
SECONDS = 120.0
BALLAST = "ballast.weight"  # a server ignores what it does not know: bytes that take a while and change nothing
BALLAST_BYTES = 2**29
KILL_SECONDS = 0.3


@dataclass(frozen=True)
class Fleet:
    one: Server
    two: Server
    tied: Server
    background: BackgroundLoop
    opened: list["Updates"] = field(default_factory=list)

    def updates(self, server: Server) -> "Updates":
        tensor = 2 if server is self.two else 1
        self.opened.append(Updates(HttpServer(server.url), self.background, tensor=tensor, seconds=SECONDS))
        return self.opened[-1]

    def close(self) -> None:
        for updates in self.opened:
            self.background.wait(updates.close())


class Updates(SGLangUpdates):
    """Remembers the groups that it joined; `victims` are killed once it takes part in the broadcast of the ballast."""

    def __init__(self, http: HttpServer, background: BackgroundLoop, *, tensor: int, seconds: float) -> None:
        super().__init__(http, background, tensor=tensor, seconds=seconds)
        self.joined: list[str] = []
        self.victims: list[psutil.Process] = []

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        super().join_group(group, address, port, rank, world_size, backend)
        self.joined.append(group)

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        if BALLAST in names:
            for victim in self.victims:
                threading.Timer(KILL_SECONDS, victim.kill).start()
        super().receive(group, names, dtypes, shapes)


class Pool:
    """Implements `protocols.ServerPool`."""

    def __init__(self, *servers: UpdatableServer) -> None:
        self.servers = list(servers)
        self.given: list[tuple[list[str], int]] = []

    def updatable(self) -> Sequence[UpdatableServer]:
        return list(self.servers)

    def set_aside(self) -> Sequence[UpdatableServer]:
        return list(self.servers)

    def updated(self, servers: Sequence[UpdatableServer], version: int) -> None:
        self.given.append(([server.name for server in servers], version))

    def lost(self, server: UpdatableServer, error: Exception) -> None:
        self.servers.remove(server)


class OneRank:
    """Implements `protocols.Ranks`."""

    rank = 0

    def from_rank0(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)


class Source:
    """Implements `protocols.WeightSource`: the tensors of a model folder, `missing` left out."""

    def __init__(self, folder: Path, shapes: Mapping[str, Sequence[int]], missing: str = "") -> None:
        state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        state[BALLAST] = torch.zeros(BALLAST_BYTES // 4 if BALLAST in shapes else 0)
        self._tensors = [(name, state[name]) for name in shapes if name != missing]

    def export(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._tensors


def start(python: Path, folder: Path, *, tied: bool, two: bool) -> Server:
    make_model(folder / "model", "qwen2", tied=tied)
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"} if two else {}
    config = servers_config(python, tensor=1 + two, environment={**CPU_ENVIRONMENT, **cores})
    (port,) = choose_ports(config, "rollout.sglang")
    return Server(
        f"http://127.0.0.1:{port}", SGLangLauncher(config, folder / "model", 0, port).start(folder / "server.log")
    )


def new_model(tmp_path: Path, *, seed: int, tied: bool = False) -> tuple[Path, dict[str, tuple[int, ...]]]:
    folder = tmp_path / "new"
    make_model(folder, "qwen2", tied=tied, seed=seed)
    return folder, hf_shapes(read_shape(folder))


def make_transport(name: str, tmp_path: Path, model: Path) -> tuple[Caller, Transport]:
    caller = Caller()
    if name == "broadcast":
        return caller, BroadcastTransport(caller, "127.0.0.1", CPU, SECONDS)
    if name == "tensor":
        return caller, TensorTransport(caller)
    return caller, DiskTransport(caller, tmp_path / "transit", model)


@contextlib.contextmanager
def receiving(
    pool: Pool, shapes: Mapping[str, Sequence[int]], transport: tuple[Caller, Transport]
) -> Iterator[ServerWeights]:
    with contextlib.closing(
        ServerWeights(pool, *transport, shapes=shapes, dtype=torch.float32, device=CPU, bucket_bytes=BUCKET_BYTES)
    ) as receiver:
        yield receiver


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def assert_serves(server: Server, folder: Path, version: int) -> None:
    """The tolerance is the one that `test_environment` derives."""
    sampling = {"max_new_tokens": NUM_NEW_TOKENS, "temperature": 1.0, "ignore_eos": True}
    answers = post(server, "/generate", {"input_ids": PROMPTS, "sampling_params": sampling, "return_logprob": True})
    reference = load(folder)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        spans = [{"version": str(version), "start": 0, "end": NUM_NEW_TOKENS}]
        assert answer["meta_info"]["weight_versions"] == spans
        logprobs, completion, _ = zip(*answer["meta_info"]["output_token_logprobs"], strict=True)
        with torch.no_grad():
            logits_TV = reference(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        expected_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        tolerance = RELATIVE_ERROR * float(logits_TV.abs().max())
        torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), expected_T, rtol=0, atol=tolerance)


def shared_by_us() -> list[Path]:
    return list(Path("/dev/shm").glob(f"torch_{os.getpid()}_*"))


def assert_nothing_is_left(ports: set[int], seconds: float = 30.0) -> None:
    """No shared memory of this process, and no port beside `ports`; what is closed in a thread may take a moment."""
    deadline = time.monotonic() + seconds
    while (shared_by_us() or not set(listening_ports()) <= ports) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shared_by_us() == []
    assert set(listening_ports()) <= ports  # tests before may have left some


def listening_ports() -> list[int]:
    connections = psutil.Process().net_connections(kind="inet")
    return [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]
