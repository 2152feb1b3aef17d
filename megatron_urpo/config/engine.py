"""What generates: the engine in this process or servers, and how weights reach them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from megatron_urpo.config.section import Positive, Section


class EmbeddedConfig(Section):
    max_batch_tokens: PositiveInt = Field(65536, description="prompt and new tokens that one batch may hold")
    dtype: Literal["bfloat16", "float32"] = "float32"


class ServersConfig(Section):
    """Servers that this run starts, or, with `urls`, servers that are already up."""

    urls: tuple[str, ...] = Field((), description="attach to these instead of starting any")
    num_servers: PositiveInt = 1
    command: tuple[str, ...] = Field(
        ("python", "-m", "sglang.launch_server"), description="program that serves; flags are added to it"
    )
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    tensor: PositiveInt = Field(1, description="tensor-parallel size of each server")
    port: int = Field(0, ge=0, le=65535, description="of the first server, the next has the next; 0: any free ones")
    first_gpu: int | None = Field(None, ge=0, description="server i uses the `tensor` GPUs from first_gpu + i * tensor")
    flags: dict[str, bool | int | float | str] = Field(
        {}, description="more flags of the server by their names without dashes, e.g. {mem-fraction-static: 0.8}"
    )
    environment: dict[str, str] = Field({}, description="environment variables of the servers")
    ready_seconds: Positive = Field(900.0, description="for a server to start, and to come back")
    request_seconds: Positive = Field(1800.0, description="for one completion")
    max_restarts: int = Field(3, ge=0, description="of each server that this run started")
    max_tokens_in_flight: PositiveInt | None = Field(
        None, description="prompt and new tokens asked of a server at once; default: four times what its KV cache holds"
    )


class VLLMServersConfig(ServersConfig):
    command: tuple[str, ...] = Field(
        ("python", "-m", "vllm.entrypoints.openai.api_server"), description="program that serves; flags are added to it"
    )


class WeightSyncConfig(Section):
    """How the policy's weights reach servers; the embedded engine takes them in its own process."""

    transport: Literal["broadcast", "tensor", "disk"] = Field(
        "broadcast", description="process group of rank 0 and all servers; memory of this machine; files"
    )
    bucket_mib: PositiveInt = Field(512, description="of weights that are sent at once; two of them are held")
    folder: Path | None = Field(None, description="for `disk`: where every server can read; default: in run_dir")
    address: str = Field("127.0.0.1", description="for `broadcast`: of this machine, as the servers reach it")
    timeout_seconds: Positive = Field(600.0, description="for one call of an update; a server that hangs is lost then")
    verify: int = Field(0, ge=0, description="updates between comparisons of every server with the trainer; 0: never")


class MismatchConfig(Section):
    """Engine and trainer compute log-probabilities of the same tokens; where they drift apart training goes wrong.

    Measured at every step: the trainer's own are needed anyway.
    """

    max_kl: Positive = Field(0.1, description="`mismatch/kl`, in nats a token, above which the run stops")
