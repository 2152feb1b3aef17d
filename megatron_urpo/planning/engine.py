"""What generation takes: the servers' weights and KV cache, or the embedded engine's, and where they lie.

`mem-fraction-static` is SGLang's share of a GPU for weights and KV cache *and whatever lies there when the server
starts*; vLLM's `gpu-memory-utilization` is for that server alone. So beside a trainer the first counts what the trainer
holds at the start, and the rest of the GPU must do for what the trainer needs later.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_urpo.config import Config
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.planning.gpus import RESERVE, Gpu
from megatron_urpo.planning.parameters import total_parameters
from megatron_urpo.planning.states import DTYPE_BYTES
from megatron_urpo.policy.hf.shape import ModelShape

Placement = Literal["embedded", "beside", "apart", "attached"]
"""In rank 0's process; on GPUs that also train; on other GPUs of the first node; servers that are already up."""
FRACTION_FLAGS = {"sglang": "mem-fraction-static", "vllm": "gpu-memory-utilization"}
USUAL_FRACTION = {"sglang": 0.88, "vllm": 0.9}


@dataclass(frozen=True)
class EnginePlan:
    """Bytes are those of one GPU. `needed_tokens`: of one group at its longest, the least that makes sense."""

    kind: str
    placement: Placement
    num_servers: int
    tensor: int
    weights: int
    kv_bytes_per_token: int
    needed_tokens: int
    fraction: float | None

    @property
    def least(self) -> int:
        return self.weights + self.needed_tokens * self.kv_bytes_per_token

    @property
    def gpus_of_its_own(self) -> int:
        return self.num_servers * self.tensor if self.placement in ("apart", "attached") else 0

    def usual_fraction(self) -> float:
        return self.fraction if self.fraction is not None else USUAL_FRACTION[self.kind]

    def kv_tokens(self, gpu: Gpu, at_start: int = 0) -> int:
        """Tokens that the KV cache of a server holds on a GPU where `at_start` bytes are taken when it starts."""
        static = int(self.usual_fraction() * gpu.memory) - (at_start if self.kind == "sglang" else 0)
        return max(0, static - self.weights) // self.kv_bytes_per_token


def plan_engine(config: Config, shape: ModelShape, gpus: int, per_node: int) -> EnginePlan:
    rollout = config.rollout
    longest = max(
        rollout.max_prompt_tokens + rollout.max_new_tokens,
        config.referee.max_prompt_tokens + config.referee.max_new_tokens,
    )
    if rollout.engine == "embedded":
        width = DTYPE_BYTES[rollout.embedded.dtype]
        return EnginePlan(
            kind="embedded",
            placement="embedded",
            num_servers=1,
            tensor=1,
            weights=2 * total_parameters(shape) * width,  # an update is gathered whole beside the weights in use
            kv_bytes_per_token=_kv_bytes(shape, 1, width),
            needed_tokens=max(rollout.embedded.max_batch_tokens, longest),
            fraction=None,
        )
    servers: ServersConfig = rollout.sglang if rollout.engine == "sglang" else rollout.vllm
    width = DTYPE_BYTES[servers.dtype]
    given = servers.flags.get(FRACTION_FLAGS[rollout.engine])
    return EnginePlan(
        kind=rollout.engine,
        placement=_placement(servers, min(gpus, per_node)),
        num_servers=len(servers.urls) or servers.num_servers,
        tensor=servers.tensor,
        weights=total_parameters(shape) * width // servers.tensor,
        kv_bytes_per_token=_kv_bytes(shape, servers.tensor, width),
        needed_tokens=max(longest, rollout.completions_per_prompt * rollout.max_new_tokens + rollout.max_prompt_tokens),
        fraction=float(given) if isinstance(given, int | float) else None,
    )


def _placement(servers: ServersConfig, trainer_gpus: int) -> Placement:
    if servers.urls:
        return "attached"
    return "beside" if (servers.first_gpu or 0) < trainer_gpus else "apart"


def _kv_bytes(shape: ModelShape, tensor: int, width: int) -> int:
    """Key and value of every layer; a group of them is never cut, so more ranks than groups keep copies."""
    return 2 * shape.num_layers * max(1, shape.num_query_groups // tensor) * shape.head_dim * width


def largest_fraction(engine: EnginePlan, gpu: Gpu, at_start: int, at_peak: int) -> float:
    """The largest value of the flag that leaves the trainer its peak, rounded down to a hundredth; 0: none."""
    later = at_peak - (at_start if engine.kind == "sglang" else 0) + RESERVE
    return max(0.0, int((1 - later / gpu.memory) * 100) / 100)
