"""The batches that a run learned from, kept so that any step since the oldest checkpoint can be run again.

    batches/step_000012.npz              what made policy version 12 out of version 11
    batches/step_000013.not_finite.npz   the same, of a step whose loss or gradient was not finite: stays for good

A batch is written before the update that learns from it, so that an update that dies leaves it behind. The files are
plain numpy archives without pickle; a zip file's checksums tell a damaged one. Prompts are stored once for all of their
completions.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_urpo.config import ConfigError
from megatron_urpo.reporting.jsonl import replace_bytes
from megatron_urpo.types import TASKS, Sample

FORMAT = 1
_NAME = re.compile(r"step_(\d+)(\.not_finite)?\.npz")
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True)
class Origin:
    """What a run was when it wrote a batch. A run that is resumed may be another one: each batch says its own.

    `config`: the whole config as plain values. `device`: `cpu` or `cuda`.
    """

    config: dict[str, Any]
    world_size: int
    num_threads: int
    device: str


@dataclass(frozen=True)
class Batch:
    """`samples` make policy version `step` out of the one before."""

    step: int
    samples: tuple[Sample, ...]
    origin: Origin


class Batches:
    """The kept batches of the run in `run_dir`. Reading makes no folder; one process writes."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "batches"

    def steps(self) -> list[int]:
        """The steps whose batches are kept, ascending."""
        return sorted(self._files())

    def write(self, step: int, samples: Sequence[Sample], origin: Origin) -> None:
        """On disk as a whole when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(self.folder / f"step_{step:06d}.npz", _encoded(Batch(step, tuple(samples), origin)))

    def read(self, step: int) -> Batch:
        """Exactly what was written, log-probabilities in float32. Raises ConfigError for a damaged file."""
        path = self._files()[step]
        try:
            return _decoded(path.read_bytes())
        except _UnknownFormat as error:
            raise ConfigError(f"{path}: has format {error}, this version reads {FORMAT}; use the other one") from None
        except _DAMAGE:
            raise ConfigError(
                f"{path}: is not a whole batch file; it is damaged, and no step after it can be replayed from a"
                " checkpoint before it: restore it or replay another step"
            ) from None

    def settle(self, step: int, not_finite: bool, keep: bool) -> None:
        """After the update: a batch that was not finite is marked, any other one stays where `keep` says so."""
        path = self.folder / f"step_{step:06d}.npz"
        if not_finite:
            path.replace(path.with_suffix(".not_finite.npz"))
        elif not keep:
            path.unlink()

    def forget_up_to(self, step: int) -> None:
        """No checkpoint is left from which steps up to `step` could be reached; those not finite stay as evidence."""
        for number, path in self._files().items():
            if number <= step and not path.name.endswith(".not_finite.npz"):
                path.unlink()

    def forget_after(self, step: int) -> None:
        """A run that is resumed at `step` writes the later ones again."""
        for number, path in self._files().items():
            if number > step:
                path.unlink()

    def _files(self) -> dict[int, Path]:
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return {int(match[1]): path for path in paths if (match := _NAME.fullmatch(path.name))}


class _UnknownFormat(Exception):
    """The file is whole, and of a version with another format."""


def _encoded(batch: Batch) -> bytes:
    samples = batch.samples
    prompts = {ids: index for index, ids in enumerate(dict.fromkeys(sample.prompt_ids for sample in samples))}
    about = {"format": FORMAT, "step": batch.step, "tasks": TASKS, **asdict(batch.origin)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        prompt_ids=_joined(list(prompts), np.int32),
        prompt_lengths=np.array([len(ids) for ids in prompts], np.int32),
        completion_ids=_joined([sample.completion_ids for sample in samples], np.int32),
        completion_lengths=np.array([len(sample.completion_ids) for sample in samples], np.int32),
        rollout_logprobs=_joined([sample.rollout_logprobs for sample in samples], np.float32),
        prompt=np.array([prompts[sample.prompt_ids] for sample in samples], np.int32),
        group=np.array([sample.group for sample in samples], np.int32),
        task=np.array([TASKS.index(sample.task) for sample in samples], np.int32),
        advantage=np.array([sample.advantage for sample in samples], np.float64),
    )
    return buffer.getvalue()


def _decoded(content: bytes) -> Batch:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        if (written_as := about.pop("format")) != FORMAT:
            raise _UnknownFormat(written_as)
        prompts = _split(file["prompt_ids"], file["prompt_lengths"])
        lengths = file["completion_lengths"]
        columns = (
            file["group"].tolist(),
            [about["tasks"][index] for index in file["task"].tolist()],
            [prompts[index] for index in file["prompt"].tolist()],
            _split(file["completion_ids"], lengths),
            file["advantage"].tolist(),
            _split(file["rollout_logprobs"], lengths),
        )
    samples = tuple(Sample(*row) for row in zip(*columns, strict=True))
    step, _ = about.pop("step"), about.pop("tasks")
    return Batch(step, samples, Origin(**about))


def _joined(rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> "np.ndarray[Any, Any]":
    return np.array([value for row in rows for value in row], dtype)


def _split(joined: "np.ndarray[Any, Any]", lengths: "np.ndarray[Any, Any]") -> list[tuple[Any, ...]]:
    values, ends = joined.tolist(), [0, *np.cumsum(lengths).tolist()]
    return [tuple(values[start:end]) for start, end in pairwise(ends)]
