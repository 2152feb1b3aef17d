"""What a run needs beside the policy to go on as if it had never stopped, and how it is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_urpo.checkpoints.manifest import (
    Damaged,
    Layout,
    check_contents,
    check_fits,
    check_sizes,
    kept_checkpoints,
    layout_of,
    read_manifest,
    refused,
)
from megatron_urpo.config import Config, ConfigError
from megatron_urpo.health import Health
from megatron_urpo.policy.checkpoint import load_policy
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.parallel import launched_world_size
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.random_state import load_random_state
from megatron_urpo.policy.spec import choose_spec
from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.rollout.saved import rollout_from_json


@dataclass(frozen=True)
class Ahead:
    """A batch that was collected and not yet trained on; `stream`: the prompt stream's state after it was drawn."""

    stream: dict[str, Any]
    rollout: Rollout


@dataclass(frozen=True)
class RunState:
    """`stream`: the prompt stream's state after the last step that was trained on."""

    step: int
    health: Health
    stream: dict[str, Any]
    ahead: Ahead | None = None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The folder of the newest committed checkpoint of a run."""
    return next(reversed(kept_checkpoints(run_dir).values()), None)


def expected_layout(config: Config) -> Layout:
    """That of the launched ranks."""
    data = launched_world_size() // (config.parallel.tensor * config.parallel.pipeline)
    return layout_of(config, data, choose_spec(config.model.spec))


def check_checkpoint(folder: Path, shape: ModelShape, layout: Layout) -> RunState:
    """The state in a checkpoint that a run of this model can go on from, by everything but its checksums.

    Raises ConfigError where it is incomplete, truncated, of another model or format.
    """
    try:
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
        state = _read_state(folder / "state.json")
    except Damaged as damage:
        raise refused(folder, damage) from None
    check_fits(folder, manifest, shape, layout)
    return state


def load_checkpoint(folder: Path, policy: Policy) -> RunState:
    """Collective. Loads what is in `folder` into `policy` after its checksums; each rank reads its share of the files.

    Raises ConfigError on every rank where a file is not what was written.
    """
    parallel = policy.parallel
    fault = None
    try:
        manifest = read_manifest(folder)
        state = _read_state(folder / "state.json", groups=folder / "groups.json")
        check_contents(folder, manifest, sorted(manifest.files)[parallel.rank :: parallel.world_size])
    except Damaged as damage:
        fault = str(damage)
    if faults := [text for text in parallel.gather(fault) if text is not None]:
        raise ConfigError(parallel.from_rank0(lambda: str(refused(folder, faults[0]))))
    load_policy(policy, folder / "policy")
    if manifest.layout.ranks == (parallel.tensor, parallel.pipeline, parallel.data):
        load_random_state(folder / "random" / f"rank_{parallel.rank:05d}.safetensors")
    return state


def _read_state(path: Path, groups: Path | None = None) -> RunState:
    """Without the groups of a batch ahead where `groups` is None. Raises Damaged."""
    try:
        values = json.loads(path.read_bytes())
        health = TypeAdapter(Health).validate_python(values["health"])
        ahead = None
        if groups is not None and groups.exists():
            row = json.loads(groups.read_bytes())
            ahead = Ahead(row["stream"], rollout_from_json(row["rollout"]))
        return RunState(int(values["step"]), health, dict(values["stream"]), ahead)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"has a {path.name} that cannot be read ({' '.join(str(error).split())[:200]})") from None
