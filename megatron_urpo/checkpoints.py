"""Checkpoints of a run: `checkpoints/step_000050/` with the policy's files and `state.json`.

A checkpoint is written beside its place and renamed when it is whole: a folder named `step_*` is always complete.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.health import Health
from megatron_urpo.policy.checkpoint import load_policy, save_policy
from megatron_urpo.policy.policy import Policy
from megatron_urpo.reporting.batches import Batches

FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """What a run needs beside the policy to go on as if it had never stopped."""

    step: int
    health: Health
    stream: dict[str, Any]
    shape: dict[str, Any]
    format: int = FORMAT


def kept_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The folders of a run's complete checkpoints by their step, oldest first."""
    folders = sorted((run_dir / "checkpoints").glob("step_*[0-9]"))
    return {int(folder.name.removeprefix("step_")): folder for folder in folders}


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run."""
    return next(reversed(kept_checkpoints(run_dir).values()), None)


def read_state(folder: Path) -> RunState:
    """Raises ConfigError where `state.json` is missing, damaged or of another format."""
    path = folder / "state.json"
    try:
        text = path.read_text()
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, not an object")
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"run_dir: {path} has format {values.get('format')!r}, this version reads {FORMAT}; go on with the"
                " version that wrote it"
            )
        return TypeAdapter(RunState).validate_json(text, strict=True)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"run_dir: {path} cannot be read ({' '.join(str(error).split())}); remove {folder} to go on from the"
            " checkpoint before it"
        ) from None


def save_checkpoint(config: Config, policy: Policy, state: RunState) -> None:
    """Collective. Older checkpoints than the newest `keep_last` are removed, once the new one is in place.

    So are the batches that only they lead to.
    """
    root, keep_last = config.run_dir / "checkpoints", config.checkpoint.keep_last
    target, beside = root / f"step_{state.step:06d}", root / f"step_{state.step:06d}.unfinished"
    parallel = policy.parallel
    parallel.from_rank0(_make_empty, beside)
    save_policy(policy, beside / "policy")
    parallel.from_rank0(_commit, beside, target, state, keep_last)


def load_checkpoint(run_dir: Path, policy: Policy) -> RunState | None:
    """Collective. Loads the newest checkpoint into `policy`; None where there is none."""
    folder = policy.parallel.from_rank0(newest_checkpoint, run_dir)
    if folder is None:
        return None
    load_policy(policy, folder / "policy")
    return read_state(folder)


def run_state(policy: Policy, step: int, health: Health, stream: dict[str, Any]) -> RunState:
    return RunState(step, health, stream, dataclasses.asdict(policy.part.shape))


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "policy").mkdir(parents=True)


def _commit(beside: Path, target: Path, state: RunState, keep_last: int) -> None:
    (beside / "state.json").write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    run_dir = target.parent.parent
    steps = list(kept_checkpoints(run_dir))
    for old in steps[:-keep_last]:
        shutil.rmtree(target.with_name(f"step_{old:06d}"))
    if len(steps) > keep_last:
        Batches(run_dir).forget_up_to(steps[-keep_last])
