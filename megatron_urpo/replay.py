"""Runs a kept batch again: the weights it met, the same update, and the numbers beside those that were recorded.

Step N is the update that made policy version N out of N - 1, the line of metrics.jsonl with that step. The weights that
it met come from the newest kept checkpoint before N, or from the model folder where step 0 is nearer, by the updates in
between. No engine is needed and nothing is written.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from megatron_urpo.checkpoints.manifest import kept_checkpoints
from megatron_urpo.checkpoints.state import check_checkpoint, expected_layout, load_checkpoint
from megatron_urpo.config import Config, ConfigError, restore_config
from megatron_urpo.policy.not_finite import not_finite_samples
from megatron_urpo.policy.parallel import Parallel, joined_ranks, launched_world_size
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.update import update
from megatron_urpo.preflight.inputs import check_model
from megatron_urpo.preflight.lengths import check_lengths
from megatron_urpo.reporting.batches import Batches, Origin
from megatron_urpo.reporting.comparison import listing, pairs, table, verdict
from megatron_urpo.reporting.report.read import read_metrics
from megatron_urpo.train import new_policy
from megatron_urpo.types import Sample

# A layout changes the order of sums, so each update starts from slightly other weights than the recorded one. Three
# float32 updates at five layouts stay below 1e-4 (tests/loop/test_layouts.py). bfloat16 has 8 bits for float32's 24:
# four steps of the miniature at tensor 2 moved the gradient norm by up to 2.4e-2 of itself; twice that is allowed.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
# What the numbers of an update follow from, beside the batches and the weights.
NUMBERS: dict[str, Any] = {
    "num_steps": True, "seed": True, "model": {"init", "spec", "dtype"}, "parallel": True, "fp8": True,
    "optimizer": True, "loss": True,
}  # fmt: skip

Say = Callable[[str], object]


@dataclass(frozen=True)
class Route:
    """`steps` are run, the last is the one asked for; they start from `checkpoint`, None for the model folder."""

    steps: range
    checkpoint: Path | None


def replay(run: Path, step: int, overrides: Sequence[str] = ()) -> bool:
    """Prints what was recorded and what the replay gives; True where they agree, or where nothing was recorded.

    `overrides` change the config that the batch was written under. Raises ConfigError, also for a step that was not
    kept and a batch that is damaged.
    """
    route, kept = find_route(run, step), Batches(run)
    origin = [kept.read(number) for number in route.steps][-1].origin
    config = restore_config(origin.config, overrides)
    shape, _ = check_model(config.model, config.parallel, config.fp8)
    check_lengths(config, shape)
    if route.checkpoint is not None:
        check_checkpoint(route.checkpoint, shape, expected_layout(config))
    tolerance = judged_by(origin, config)
    if tolerance == 0:
        torch.set_num_threads(origin.num_threads)
    recorded = {int(line["step"] or 0): line for line in read_metrics(run / "metrics.jsonl", [])}
    with joined_ranks(config.parallel, config.seed, config.launch) as parallel:
        say: Say = click.echo if parallel.rank == 0 else (lambda text: None)
        say(f"step {step} of {run}: {_described(route)}; {_layout(config, parallel)}")
        policy = _policy(config, parallel, route)
        for number in route.steps:
            samples = kept.read(number).samples
            stats = update(policy, samples, config.loss, measure_tasks=number == step)
            compared = pairs(recorded.get(number, {}), stats)
            agrees = all(pair.agrees(tolerance) for pair in compared)
            if number == step:
                say(table(compared) if compared else listing(stats))
                if stats.get("policy/not_finite"):
                    say(_culprits(policy, samples, config))
            judgement = verdict(compared, tolerance) if compared else "metrics.jsonl has no line of this step"
            say(f"step {number}: {judgement}")
    return agrees


def find_route(run: Path, step: int) -> Route:
    """Raises ConfigError that says which steps can be replayed where `step` cannot."""
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder; name the run_dir of a run")
    kept, checkpoints = set(Batches(run).steps()), kept_checkpoints(run)
    routes: dict[int, Route] = {}
    for number in sorted(kept):
        base = max((start for start in (0, *checkpoints) if start < number), default=0)
        steps = range(base + 1, number + 1)
        if kept.issuperset(steps):
            routes[number] = Route(steps, checkpoints.get(base))
    if step in routes:
        return routes[step]
    if not routes:
        raise ConfigError(
            f"{run}: holds no batch that can be replayed; a run keeps those since its oldest checkpoint unless"
            " checkpoint.keep_batches is false"
        )
    reason = "its batch is kept, the weights that it met are not" if step in kept else "its batch is not kept"
    raise ConfigError(f"--step: {step} cannot be replayed ({reason}); those that can: {_ranges(list(routes))}")


def judged_by(origin: Origin, config: Config) -> float:
    """0 where the replay does what the run did, on a CPU; else the tolerance of the coarser precision."""
    before = restore_config(origin.config)
    on_cpu = origin.device == "cpu" and not torch.cuda.is_available()
    same = before.model_dump(include=NUMBERS) == config.model_dump(include=NUMBERS)
    if on_cpu and same and launched_world_size() == origin.world_size:
        return 0.0
    return max(TOLERANCE[before.model.dtype], TOLERANCE[config.model.dtype])


def _policy(config: Config, parallel: Parallel, route: Route) -> Policy:
    policy = new_policy(config, parallel)
    if route.checkpoint is not None:
        load_checkpoint(route.checkpoint, policy)
    return policy


def _culprits(policy: Policy, samples: Sequence[Sample], config: Config) -> str:
    found = not_finite_samples(policy, samples, config.loss)
    if not found:
        return "the gradient is finite where the ratio to the old policy is 1: a later epoch drove the ratio off"
    if len(found) > 1:
        return f"samples {_ranges(found)} give a gradient that is not finite only together"
    sample = samples[found[0]]
    logprobs = "finite" if all(map(math.isfinite, sample.rollout_logprobs)) else "not finite"
    return (
        f"sample {found[0]} alone gives a gradient that is not finite: group {sample.group} ({sample.task}),"
        f" {len(sample.prompt_ids)} + {len(sample.completion_ids)} tokens, advantage {sample.advantage:g},"
        f" rollout log-probabilities {logprobs}"
    )


def _described(route: Route) -> str:
    start = f"from {route.checkpoint.name}" if route.checkpoint is not None else "from the model folder"
    return f"{start}, batches {_ranges(list(route.steps))}"


def _layout(config: Config, parallel: Parallel) -> str:
    return f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {parallel.data}, {config.model.dtype}"


def _ranges(numbers: Sequence[int]) -> str:
    """`1-4, 7` for ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
