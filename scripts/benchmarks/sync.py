"""Weights from a policy to a real SGLang server, by each transport, beside a plain copy of the same bytes in memory.

A random Qwen2 in float32, one policy rank, one server on a CPU (scripts/sglang_cpu/install.sh makes its environment).
For each transport in turn: the parts of an update one after the other - export (the policy's tensors, taken apart into
Hugging Face's, and copied into a staging buffer), send and load - and then a whole update as training does it, where
export and sending overlap. Figures are medians over the rounds, in GB/s of the model's bytes.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.ports import choose_ports
from megatron_urpo.inference.sglang.launch import SGLangLauncher
from megatron_urpo.inference.sglang.update import SGLangUpdates
from megatron_urpo.policy.hf.shape import read_shape
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.weight_sync.broadcast import BroadcastTransport
from megatron_urpo.weight_sync.buckets import Bucket, check_end, fill, plan_buckets
from megatron_urpo.weight_sync.calls import Caller
from megatron_urpo.weight_sync.disk import DiskTransport
from megatron_urpo.weight_sync.push import push_weights
from megatron_urpo.weight_sync.servers import ServerWeights
from megatron_urpo.weight_sync.tensor import TensorTransport
from megatron_urpo.weight_sync.transport import Transport
from tests.servers.process import Server, servers_config, wait_until_ready

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
MIB = 2**20
SECONDS = 300.0
COLUMNS = ("copy", "export", "send", "load", "update")
FRAME = "frame"
"""The calls before and after the weights: pause, begin, end, flush, stamp, check, continue."""


class OneServer:
    """Implements `protocols.ServerPool`."""

    def __init__(self, server: SGLangUpdates) -> None:
        self.server = server

    def updatable(self) -> list[SGLangUpdates]:
        return [self.server]

    def updated(self, servers: object, version: int) -> None:
        """Nobody generates here."""

    def lost(self, server: object, error: Exception) -> None:
        raise error


@dataclass
class Bench:
    policy: Policy
    server: SGLangUpdates
    folder: Path
    buckets: list[Bucket]
    bucket_bytes: int
    versions: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(bucket.num_bytes for bucket in self.buckets)

    def round(self, name: str) -> dict[str, float]:
        """Seconds of each part; `send` and `load` are one where a server does both in one answer."""
        caller = Caller()
        transport = self._transport(name, caller)
        try:
            buffer = transport.buffer(self.bucket_bytes, CPU)
            for _ in range(2):  # the first one touches the buffer's memory and makes connections
                parts = self._parts(transport, buffer)
            return {"copy": self._copy(), **parts, "update": self._update(transport, caller)}
        finally:
            transport.close()
            caller.close()

    def _transport(self, name: str, caller: Caller) -> Transport:
        if name == "broadcast":
            return BroadcastTransport(caller, "127.0.0.1", CPU, SECONDS)
        if name == "tensor":
            return TensorTransport(caller)
        return DiskTransport(caller, self.folder / "transit", self.folder / "model")

    def _copy(self) -> float:
        source, target = (torch.ones(self.bucket_bytes, dtype=torch.uint8) for _ in range(2))
        start = time.perf_counter()
        for bucket in self.buckets:
            target[: bucket.num_bytes].copy_(source[: bucket.num_bytes])
        return time.perf_counter() - start

    def _parts(self, transport: Transport, buffer: torch.Tensor) -> dict[str, float]:
        """One bucket after the other, without overlap."""
        seconds = {"export": 0.0, "send": 0.0, "load": 0.0, FRAME: 0.0}
        start = time.perf_counter()
        self.server.begin_update()
        seconds[FRAME] = time.perf_counter() - start
        transport.open([self.server])
        stream = self.policy.export()
        for bucket in self.buckets:
            start = time.perf_counter()
            fill(bucket, stream, buffer)
            filled = time.perf_counter()
            transport.send(bucket, buffer).wait()
            seconds["export"] += filled - start
            seconds["send"] += time.perf_counter() - filled
        check_end(stream)
        start = time.perf_counter()
        transport.finish()
        seconds["load"] = time.perf_counter() - start
        self.versions += 1
        start = time.perf_counter()
        self.server.end_update(self.versions)
        seconds[FRAME] += time.perf_counter() - start
        return seconds

    def _update(self, transport: Transport, caller: Caller) -> float:
        """The second of two, too."""
        shapes = hf_shapes(self.policy.part.shape)
        weights = ServerWeights(
            OneServer(self.server), caller, transport,
            shapes=shapes, dtype=torch.float32, device=CPU, bucket_bytes=self.bucket_bytes,
        )  # fmt: skip
        for _ in range(2):
            self.versions += 1
            found = push_weights(self.policy, weights, self.versions, self.policy.parallel)
        return found["time/weight_sync"]


def write_model(folder: Path, layers: int) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    python = Path(os.environ.get("SGLANG_VENV") or ROOT / ".venv-sglang") / "bin" / "python"
    config = servers_config(python)
    (port,) = choose_ports(config, "rollout.sglang")
    process = SGLangLauncher(config, model, 0, port).start(log)
    try:
        wait_until_ready(Server(f"http://127.0.0.1:{port}", process))
        process.remember_shared_memory()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


@contextlib.contextmanager
def prepared(folder: Path, layers: int, bucket_bytes: int) -> Iterator[Bench]:
    model, background = folder / "model", BackgroundLoop("updates")
    write_model(model, layers)
    with serving(model, folder / "server.log") as url, joined_ranks(ParallelConfig()) as parallel:
        server = SGLangUpdates(HttpServer(url), background, tensor=1, seconds=SECONDS)
        settings = ModelConfig(path=model, dtype="float32", spec="torch")
        policy = build_policy(settings, OptimizerConfig(), ParallelConfig(), parallel, 10, 1)
        buckets = plan_buckets(hf_shapes(read_shape(model)), torch.float32, bucket_bytes)
        largest = max(bucket.num_bytes for bucket in buckets)
        yield Bench(policy, server, folder, buckets, max(bucket_bytes, largest))
        background.wait(server.close())
    background.close()


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bucket-mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("broadcast", "tensor", "disk")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared(Path(folder), arguments.layers, arguments.bucket_mib * MIB) as bench,
    ):
        size = bench.num_bytes / 1e9
        print(f"{size:.2f} GB in {len(bench.buckets)} buckets; load {psutil.getloadavg()[0]:.1f}")
        for _ in range(arguments.rounds):
            for name in names:
                found[name].append(bench.round(name))
    print(f"load {psutil.getloadavg()[0]:.1f}\n\n{'GB/s':<10}" + "".join(f"{x:>22}" for x in (*COLUMNS, "frame, s")))
    for name, rounds in found.items():
        cells = []
        for column in COLUMNS:
            rates = [size / seconds for one in rounds if (seconds := one[column]) > 1e-3]
            cells.append(spread(rates) if rates else "-")
        cells.append(spread([one[FRAME] for one in rounds]))
        print(f"{name:<10}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
