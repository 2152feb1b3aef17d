"""A real vLLM server on a CPU as a child of the tests, and the models that it serves there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megatron_urpo.config.engine import VLLMServersConfig
from megatron_urpo.inference.ports import choose_ports
from megatron_urpo.inference.vllm.launch import VLLMLauncher
from megatron_urpo.policy.hf.shape import read_shape
from megatron_urpo.policy.hf.table import hf_shapes
from tests.servers.process import READY_SECONDS, Server, wait_until_ready
from tests.support.models import make_model

FAMILY = "qwen3"  # vLLM's attention on a CPU wants heads of 32 dimensions or more
CONTEXT = 4096  # completions that run for many seconds
FLAGS: dict[str, bool | int | float | str] = {"enforce-eager": True, "max-num-seqs": 16}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}


def vllm_config(python: Path, **values: object) -> VLLMServersConfig:
    """vLLM on a CPU in float32."""
    given = {
        "command": (str(python), "-m", "vllm.entrypoints.openai.api_server"),
        "dtype": "float32",
        "flags": FLAGS,
        "environment": ENVIRONMENT,
        "ready_seconds": READY_SECONDS,
    }
    return VLLMServersConfig.model_validate({**given, **values})


@contextlib.contextmanager
def run_vllm(python: Path, model: Path, folder: Path, **values: object) -> Iterator[Server]:
    """Serves `model` while the block runs; `folder` takes the log."""
    with start_vllm(python, model, folder, **values) as server:
        wait_until_ready(server)
        yield server


@contextlib.contextmanager
def start_vllm(python: Path, model: Path, folder: Path, **values: object) -> Iterator[Server]:
    """The same without waiting, so that several start side by side."""
    config = vllm_config(python, **values)
    (port,) = choose_ports(config, "rollout.vllm")
    process = VLLMLauncher(config, model, 0, port).start(folder / "server.log")
    try:
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.stop()


def new_model(folder: Path, *, seed: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """Writes a model; the shapes of the weights that an update sends."""
    make_model(folder, FAMILY, tied=tied, seed=seed, max_position_embeddings=CONTEXT)
    return hf_shapes(read_shape(folder))
