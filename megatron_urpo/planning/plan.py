"""From a config, a kind of GPU and their number to what fits, what does not, and what would."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.planning.batch import PhasePlan, ScoringPrompt, plan_phases, plan_scoring_prompt
from megatron_urpo.planning.engine import FRACTION_FLAGS, EnginePlan, largest_fraction, plan_engine
from megatron_urpo.planning.gpus import GIB, MIB, RESERVE, Gpu, find_gpu
from megatron_urpo.planning.memory import RankMemory, rank_memory, stages_to_look_at
from megatron_urpo.planning.parameters import total_parameters
from megatron_urpo.planning.search import Candidate, fitting, layouts, nearest
from megatron_urpo.planning.states import DTYPE_BYTES
from megatron_urpo.policy.experts import check_experts
from megatron_urpo.policy.hf.shape import ModelShape, check_layout, read_shape
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.preflight.lengths import check_lengths


@dataclass(frozen=True)
class Plan:
    """`problems`: one line each, field, value, rule, way out; empty where the run fits. Bytes everywhere."""

    gpu: Gpu
    gpus: int
    """That train; `engine.gpus_of_its_own` come on top."""
    data: int
    num_parameters: int
    ranks: tuple[RankMemory, ...]
    engine: EnginePlan
    engine_bytes: int
    """Of the fullest training GPU, for generation."""
    fraction: float | None
    """The largest share of a GPU that servers beside the trainer may be given."""
    kv_tokens: int
    """That a server's KV cache holds."""
    sync_bytes: int
    sync_buckets: int
    phases: tuple[PhasePlan, ...]
    scoring: ScoringPrompt
    problems: list[str]
    fits: tuple[Candidate, ...]
    """Every layout of these GPUs that fits, the cheapest first."""
    nearest: tuple[Candidate, ...]

    @property
    def fullest(self) -> RankMemory:
        return max(self.ranks, key=lambda rank: rank.peak)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: the fields, with the sums that are properties beside what they are sums of."""
        tree = asdict(self)
        for held, rank in zip(tree["ranks"], self.ranks, strict=True):
            held["peak"], held["at_start"] = rank.peak, rank.at_start
            held["states"]["optimizer"] = rank.states.optimizer
            held["activations"]["peak"] = rank.activations.peak
        for name, found in (("fits", self.fits), ("nearest", self.nearest)):
            tree[name] = [
                {"peak": item.peak, "overrides": item.overrides(), "layout": item.layout.model_dump()} for item in found
            ]
        tree["reserve"] = RESERVE
        tree["engine"]["gpus_of_its_own"] = self.engine.gpus_of_its_own
        return tree


def make_plan(config: Config, gpu: str, gpus: int) -> Plan:
    """Raises ConfigError where there is nothing to plan: no such model or GPU, ranks that cannot be arranged."""
    kind, shape = find_gpu(gpu), read_shape(config.model.path)
    layout = config.parallel
    _check_ranks(layout, gpus)
    check_layout(shape, layout.tensor, layout.pipeline)
    check_experts(shape, layout, on_gpu=True)
    data = gpus // (layout.tensor * layout.pipeline)
    engine = plan_engine(config, shape, gpus, kind.per_node)
    width = DTYPE_BYTES[config.model.dtype]
    buckets = bucket_sizes(hf_shapes(shape), width, config.weight_sync.bucket_mib * MIB)
    synced = 0 if engine.kind == "embedded" else max(buckets) * min(2, len(buckets))
    padding = 2.0 if config.model.spec == "torch" else 1.0

    def ranks_of(other: ParallelConfig) -> list[RankMemory]:
        copies = gpus // (other.tensor * other.pipeline)
        stages = stages_to_look_at(other.pipeline)
        return [rank_memory(config, shape, other, copies, stage, synced, padding) for stage in stages]

    def full(other: ParallelConfig) -> int:
        return max(rank.peak + beside(engine, rank) for rank in ranks_of(other))

    ranks = ranks_of(layout)
    fullest = max(ranks, key=lambda rank: rank.peak + beside(engine, rank))
    fits = fitting(layouts(shape, gpus, kind.per_node, layout), full, kind.memory - RESERVE)
    fraction = None
    if engine.placement == "beside":
        fraction = min(largest_fraction(engine, kind, rank.at_start, rank.peak) for rank in ranks)
    near = nearest(fits, layout, 3)
    problems = [
        *_length_problems(config, shape),
        *_memory_problems(kind, fullest, engine, near),
        *_engine_problems(engine, kind, fraction, fullest),
        *_transport_problems(config, engine),
    ]
    at_start = fullest.at_start if engine.placement == "beside" else 0
    return Plan(
        gpu=kind,
        gpus=gpus,
        data=data,
        num_parameters=total_parameters(shape),
        ranks=tuple(ranks),
        engine=engine,
        engine_bytes=beside(engine, fullest),
        fraction=fraction,
        kv_tokens=engine.needed_tokens if engine.kind == "embedded" else engine.kv_tokens(kind, at_start),
        sync_bytes=total_parameters(shape) * width,
        sync_buckets=0 if engine.kind == "embedded" else len(buckets),
        phases=tuple(plan_phases(config, data)),
        scoring=plan_scoring_prompt(config, shape.max_positions),
        problems=problems,
        fits=tuple(fits),
        nearest=tuple(near),
    )


def beside(engine: EnginePlan, rank: RankMemory) -> int:
    """The least that generation takes of a GPU that trains. The embedded engine is rank 0's alone."""
    if engine.placement == "embedded":
        return engine.least if rank.stage == 0 else 0
    return engine.least if engine.placement == "beside" else 0


def bucket_sizes(shapes: Mapping[str, Sequence[int]], width: int, max_bytes: int) -> list[int]:
    """Bytes of the buckets that `weight_sync.buckets.plan_buckets` makes."""
    sizes: list[int] = []
    for shape in shapes.values():
        size = math.prod(shape) * width
        if sizes and sizes[-1] + size <= max_bytes:
            sizes[-1] += size
        else:
            sizes.append(size)
    return sizes


def _check_ranks(layout: ParallelConfig, gpus: int) -> None:
    copy = layout.tensor * layout.pipeline
    if gpus % copy or gpus < 1:
        raise ConfigError(
            f"--gpus: {gpus} for parallel.tensor {layout.tensor} x parallel.pipeline {layout.pipeline} = {copy} GPUs"
            f" that hold one copy of the model ({gpus} / {copy} = {gpus / copy:.2f} copies); ask for a multiple of"
            f" {copy} or change the sizes"
        )


def _length_problems(config: Config, shape: ModelShape) -> list[str]:
    try:
        check_lengths(config, shape)
    except ConfigError as error:
        return [str(error)]
    return []


def _memory_problems(gpu: Gpu, rank: RankMemory, engine: EnginePlan, near: list[Candidate]) -> list[str]:
    generation = beside(engine, rank)
    needed = rank.peak + generation + RESERVE
    if needed <= gpu.memory:
        return []
    sums = f"{gib(rank.peak)} to train"
    sums += f" + {gib(generation)} to generate" if generation else ""
    ways = " or ".join(candidate.overrides() for candidate in near)
    return [
        f"parallel: a GPU of stage {rank.stage} needs {sums} + {gib(RESERVE)} in reserve = {gib(needed)}, {gpu.name}"
        f" has {gib(gpu.memory)}; {f'use {ways}' if ways else 'no layout of these GPUs fits: take more or larger ones'}"
    ]


def _engine_problems(engine: EnginePlan, gpu: Gpu, fraction: float | None, rank: RankMemory) -> list[str]:
    if engine.placement == "embedded":
        return []
    section = f"rollout.{engine.kind}"
    flag, problems = FRACTION_FLAGS[engine.kind], []
    if engine.placement == "beside" and engine.num_servers * engine.tensor > gpu.per_node:
        problems.append(
            f"{section}.num_servers: {engine.num_servers} x tensor {engine.tensor} ="
            f" {engine.num_servers * engine.tensor} GPUs, and a run starts servers on its first node alone, which has"
            f" {gpu.per_node}; start the others yourself and name all in {section}.urls"
        )
    if fraction is not None and rank.peak + engine.least + RESERVE <= gpu.memory and engine.usual_fraction() > fraction:
        given = (
            f"{engine.fraction:g}" if engine.fraction is not None else f"not given (about {engine.usual_fraction()})"
        )
        problems.append(
            f"{section}.flags: {flag} is {given}; beside the trainer, which needs {gib(rank.peak)} of"
            f" {gib(gpu.memory)} at its peak, at most {fraction:.2f} is left; set it to that"
        )
    at_start = rank.at_start if engine.placement == "beside" else 0
    tokens = engine.kv_tokens(gpu, at_start)
    if tokens < engine.needed_tokens and not problems:
        problems.append(
            f"{section}.tensor: {engine.tensor} leaves a KV cache of {tokens:,} tokens, and one group needs"
            f" {engine.needed_tokens:,}; give a server more GPUs, or raise {flag}"
        )
    return problems


def _transport_problems(config: Config, engine: EnginePlan) -> list[str]:
    if engine.placement != "beside" or config.weight_sync.transport != "broadcast":
        return []
    servers = config.rollout.sglang if engine.kind == "sglang" else config.rollout.vllm
    if servers.first_gpu:  # rank 0's GPU is the first
        return []
    return [
        f"weight_sync.transport: broadcast with rollout.{engine.kind}.first_gpu {servers.first_gpu or 0}; rank 0 and a"
        " server would share a GPU, and NCCL takes each into a group once; use tensor"
    ]


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
