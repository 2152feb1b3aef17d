"""Two checkpoints of any kind, tensor by tensor under Hugging Face names, and each against its own manifest."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron_urpo.config import ConfigError
from megatron_urpo.conversion.convert import blocks
from megatron_urpo.conversion.locate import Checkpoint, locate
from megatron_urpo.conversion.manifest import Hashes, TensorRecord, read_manifest
from megatron_urpo.conversion.progress import byte_bar
from megatron_urpo.policy.weights.rows import ITEM_BYTES, Rows, to_tensor


@dataclass
class Findings:
    """What is not the same, one line each."""

    num_tensors: int = 0
    num_bytes: int = 0
    lines: list[str] = field(default_factory=list)


def compare(a: Checkpoint, b: Checkpoint, tolerance: float | None = None) -> Findings:
    """Reads both. Values must be the same bits; with another dtype, or `tolerance`, so close relative to the tensor.

    Two dtypes may differ by the rounding of the coarser one: half its epsilon, times the value, and no tolerance is
    needed for that.
    """
    findings = Findings()
    names_a, names_b = a.weights.names(), b.weights.names()
    findings.lines += [f"missing in {b.folder}: {name}" for name in sorted(names_a - names_b)]
    findings.lines += [f"extra in {b.folder}: {name}" for name in sorted(names_b - names_a)]
    both = [name for name in a.weights.shapes if name in names_a and name in b.weights.shapes and name in names_b]
    total = sum(prod(a.weights.shapes[name]) * ITEM_BYTES[a.weights.dtype(name)] for name in both)
    checks = [_ManifestCheck(side) for side in (a, b)]
    try:
        with byte_bar("comparing", total) as advance:
            for name in both:
                findings.num_tensors += 1
                findings.lines += _compare_one(a, b, name, tolerance, checks, advance)
    finally:
        for check in checks:
            check.close()
    findings.num_bytes = total
    return findings


def _compare_one(
    a: Checkpoint,
    b: Checkpoint,
    name: str,
    tolerance: float | None,
    checks: "list[_ManifestCheck]",
    advance: Callable[[int], None],
) -> Iterator[str]:
    shape = a.weights.shapes[name]
    if shape != b.weights.shapes[name]:
        yield f"{name}: shape {shape} and {b.weights.shapes[name]}"
        return
    worst = 0.0
    for start, stop in blocks(shape, 4):
        rows = [side.weights.read(name, start, stop) for side in (a, b)]
        for check, part in zip(checks, rows, strict=True):
            check.add(name, part)
        first, second = (to_tensor(part, side.weights.dtype(name)) for side, part in zip((a, b), rows, strict=True))
        worst = max(worst, _excess(first, second, tolerance))
        advance(rows[0].nbytes)
    dtypes = " and ".join(side.weights.dtype(name) for side in (a, b))
    if worst > 0:
        yield f"{name}: values differ, at most by {worst:.3g} above what is allowed ({dtypes})"
    for check in checks:
        yield from check.finish(name)


def _excess(a: Tensor, b: Tensor, tolerance: float | None) -> float:
    """How far the worst element is beyond what it may differ by; 0 where all is well, infinite beside a NaN."""
    if a.dtype == b.dtype and tolerance is None:
        if torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
            return 0.0
        gap = (a.double() - b.double()).abs().max().item()
        return gap if math.isfinite(gap) and gap > 0 else math.inf  # other bits of the same value, too
    x, y = a.double(), b.double()
    rounding = 0.0 if a.dtype == b.dtype else max(torch.finfo(t.dtype).eps for t in (a, b)) / 2
    tiny = 0.0 if a.dtype == b.dtype else max(torch.finfo(t.dtype).smallest_normal for t in (a, b))
    allowed = (tolerance or 0.0) * x.abs().max().clamp(min=y.abs().max()) + rounding * x.abs().maximum(y.abs()) + tiny
    beyond = ((x - y).abs() - allowed).masked_fill((x == y) | (x.isnan() & y.isnan()), 0.0)
    return math.inf if beyond.isnan().any() else max(0.0, beyond.max().item())


class _ManifestCheck:
    """Whether the tensors are those that the conversion wrote; nothing where a checkpoint has no manifest."""

    def __init__(self, checkpoint: Checkpoint):
        self._weights, self._folder = checkpoint.weights, checkpoint.folder
        self._records: dict[str, TensorRecord] | None = read_manifest(checkpoint.folder)
        self._hashes = Hashes() if self._records is not None else None

    def add(self, name: str, rows: Rows) -> None:
        if self._hashes is not None:
            self._hashes.add(name, rows)

    def finish(self, name: str) -> Iterator[str]:
        if self._records is None or self._hashes is None:
            return
        found = TensorRecord(self._weights.shapes[name], self._weights.dtype(name), self._hashes.digest(name))
        if self._records.get(name) != found:
            yield f"{name}: in {self._folder} not what its manifest.json says"

    def close(self) -> None:
        if self._hashes is not None:
            self._hashes.close()


def verify(
    a: Path, b: Path, model: Path | None = None, tolerance: float | None = None
) -> tuple[Findings, Checkpoint, Checkpoint]:
    """Raises ConfigError where one of them cannot be read."""
    first, second = locate(a, _model_for(a, model)), locate(b, _model_for(b, model))
    if first.shape.family != second.shape.family:
        raise ConfigError(
            f"{a} is of family {first.shape.family}, {b} of {second.shape.family}; they have no tensors to compare"
        )
    return compare(first, second, tolerance), first, second


def _model_for(folder: Path, model: Path | None) -> Path | None:
    """A folder with a config.json of its own keeps it."""
    return None if (folder / "config.json").is_file() else model
