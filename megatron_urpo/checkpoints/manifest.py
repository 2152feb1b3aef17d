"""What a checkpoint says of itself: `manifest.json`, written last, with the size and checksum of every file.

    checkpoints/step_000050/manifest.json     format, step, layout, model, config, files
                            state.json        prompt stream and health (state.py)
                            groups.json       with `rollout.overlap`: what was collected and not yet trained on
                            policy/           weights, optimizer and schedule in megatron-core's `torch_dist` format
                            random/           the random states of every rank, safetensors

A checkpoint is built as `step_000050.unfinished`: every file is synced, then the manifest, and the folder is renamed.
So a folder without a manifest was never whole, and one whose files differ from it was damaged afterwards.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import TypeAdapter

from megatron_urpo import __version__
from megatron_urpo.config import Config, ConfigError
from megatron_urpo.policy.durable import FileFacts, file_facts
from megatron_urpo.policy.hf.shape import ModelShape

FORMAT = 2
NAME = "manifest.json"
HASHING_THREADS = 4
_STEP = re.compile(r"step_(\d{6,})")


class Damaged(ValueError):
    """A checkpoint that is not what was written; the message goes on after the folder's name."""


@dataclass(frozen=True)
class Layout:
    """How the ranks that wrote a checkpoint shared the model, and what their optimizer state looks like."""

    tensor: int
    pipeline: int
    data: int
    distributed_optimizer: bool
    dtype: Literal["bfloat16", "float32"]
    spec: Literal["torch", "te"]

    @property
    def ranks(self) -> tuple[int, int, int]:
        return self.tensor, self.pipeline, self.data


@dataclass(frozen=True)
class Manifest:
    """`shape`: the model's; `config`: the run's, as plain values; `files`: by path inside the folder."""

    step: int
    layout: Layout
    shape: dict[str, Any]
    config: dict[str, Any]
    config_fingerprint: str
    files: dict[str, FileFacts]
    written_by: str = field(default=f"megatron_urpo {__version__}")
    format: int = FORMAT

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def fingerprint(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


def kept_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The folders of a run's committed checkpoints by their step, oldest first."""
    root = run_dir / "checkpoints"
    found = {int(match[1]): path for path in root.glob("step_*") if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items()))


def read_manifest(folder: Path) -> Manifest:
    """Raises Damaged where it is missing or not whole, and for a format that this version does not read."""
    try:
        values = json.loads((folder / NAME).read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, not an object")
        written_as = values.get("format")
        if written_as != FORMAT and isinstance(written_as, int):
            by = f" by {values.get('written_by')}" if isinstance(values.get("written_by"), str) else ""
            age = "newer" if written_as > FORMAT else "older"
            raise Damaged(
                f"has format {written_as}, written{by}, {age} than the format {FORMAT} that this version reads;"
                " go on with the version that wrote it"
            )
        manifest = TypeAdapter(Manifest).validate_python(values)
    except FileNotFoundError:
        raise Damaged(f"has no {NAME}: it is incomplete, or of a version before format {FORMAT}") from None
    except Damaged:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"has a {NAME} that cannot be read ({' '.join(str(error).split())[:200]})") from None
    outside = [
        name for name in manifest.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]
    if outside or not manifest.files:
        raise Damaged(f"has a {NAME} whose list of files is none ({outside[:1] or 'it is empty'})")
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises Damaged where a file is missing or has another length: quick, whatever the size."""
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"is incomplete: {name} is missing")
        if (size := path.stat().st_size) != facts.num_bytes:
            what = "is truncated" if size < facts.num_bytes else "has grown"
            raise Damaged(f"is damaged: {name} {what}, it has {size} bytes of {facts.num_bytes}")


def check_contents(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Reads files and raises Damaged for the first whose checksum is another."""
    wanted = list(names)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        try:
            for name, facts in zip(wanted, threads.map(lambda name: file_facts(folder / name), wanted), strict=True):
                if facts != manifest.files[name]:
                    raise Damaged(f"is damaged: the checksum of {name} is not the one that was written")
        except OSError as error:
            raise Damaged(f"cannot be read ({error})") from None


def previous_whole(folder: Path) -> Path | None:
    """The newest checkpoint before `folder` that can be read and whose files are what was written."""
    kept = kept_checkpoints(folder.parent.parent)
    for other in reversed([path for path in kept.values() if path.name < folder.name]):
        try:
            manifest = read_manifest(other)
            check_sizes(other, manifest)
            check_contents(other, manifest, manifest.files)
        except Damaged:
            continue
        return other
    return None


def refused(folder: Path, reason: object) -> ConfigError:
    """The error of a run that would go on from `folder`: what is wrong, and how to go on from the one before it."""
    other = previous_whole(folder)
    way = "no earlier checkpoint of this run is whole: give another run_dir to start anew"
    if other is not None:
        way = f"the newest whole one before it is {other.name}: to go on from there, mv {folder} {folder}.damaged"
    return ConfigError(f"run_dir: {folder} {reason}; {way}")


def check_fits(folder: Path, manifest: Manifest, shape: ModelShape, layout: Layout) -> None:
    """Raises ConfigError where another model, or another kind of optimizer state, would be loaded into this one."""
    differences = [
        f"{name} {manifest.shape.get(name)!r} there, {value!r} in model.path"
        for name, value in vars(shape).items()
        if name not in ("rope_scaling", "initializer_range") and manifest.shape.get(name) != value
    ]
    if differences:
        raise ConfigError(
            f"run_dir: {folder} is a checkpoint of another model ({'; '.join(differences)}); give the model it was"
            " trained from, or another run_dir"
        )
    saved = manifest.layout
    for place, there, here in (
        ("parallel.distributed_optimizer", saved.distributed_optimizer, layout.distributed_optimizer),
        ("model.dtype", saved.dtype, layout.dtype),
        ("model.spec", saved.spec, layout.spec),
    ):
        if there != here:
            raise ConfigError(
                f"{place}: {_plain(here)}, and {folder} was saved with {_plain(there)}, which only that can load; set"
                f" it to {_plain(there)}, or start from a model folder"
            )


def layout_of(config: Config, data: int, spec: Literal["torch", "te"]) -> Layout:
    parallel = config.parallel
    return Layout(parallel.tensor, parallel.pipeline, data, parallel.distributed_optimizer, config.model.dtype, spec)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
