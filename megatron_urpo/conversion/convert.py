"""Both directions, as streams: mapped rows in, at most BLOCK_BYTES at a time out.

A block is written while a second thread hashes it, and is small enough to be in the processor's cache for both.

Every piece is hashed as Hugging Face rows on its way, so that manifests of both directions can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_urpo.config import ConfigError
from megatron_urpo.conversion.locate import Checkpoint, locate
from megatron_urpo.conversion.manifest import Hashes, write_manifest
from megatron_urpo.conversion.progress import byte_bar
from megatron_urpo.policy.hf.folder import SHARD_BYTES, FolderWriter, copy_companions
from megatron_urpo.policy.hf.regions import joined, pieces, ranges
from megatron_urpo.policy.hf.shape import check_layout
from megatron_urpo.policy.hf.table import weight_entries
from megatron_urpo.policy.weights.aside import check_target, written_aside
from megatron_urpo.policy.weights.kinds import WEIGHTS
from megatron_urpo.policy.weights.rows import ITEM_BYTES, cast, num_bytes
from megatron_urpo.policy.weights.writers import MegatronWriter, ShardWriter, TorchDistWriter

BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Layout:
    """How Megatron's weights are written: one torch_dist checkpoint for every layout, or files for one."""

    format: Literal["torch_dist", "shards"] = "torch_dist"
    tensor: int = 1
    pipeline: int = 1
    spec: Literal["torch", "te"] = "torch"


def hf_to_megatron(source: Path, target: Path, layout: Layout = Layout(), dtype: str | None = None) -> Checkpoint:
    """Raises ConfigError, with `target` untouched, for what cannot be read, cut up or written."""
    check_target(target, 0)
    checkpoint = locate(source)
    if checkpoint.megatron:
        raise ConfigError(f"{source} holds Megatron weights already; give a Hugging Face model folder")
    try:
        check_layout(checkpoint.shape, layout.tensor, layout.pipeline)
    except ConfigError as error:
        raise ConfigError(str(error).replace("parallel.tensor", "--tp").replace("parallel.pipeline", "--pp")) from None
    dtypes = _dtypes(checkpoint, dtype)
    check_target(target, _num_bytes(checkpoint, dtypes))

    def new_writer(folder: Path) -> MegatronWriter:
        if layout.format == "torch_dist":
            return TorchDistWriter(folder, checkpoint.shape, dtypes)
        return ShardWriter(folder, checkpoint.shape, dtypes, layout.tensor, layout.pipeline, layout.spec)

    hashes = Hashes()
    try:
        with written_aside(target) as aside, byte_bar("converting", _num_bytes(checkpoint, dtypes)) as advance:
            _stream_to_megatron(checkpoint, new_writer(aside / WEIGHTS), hashes, dtypes, advance)
            write_manifest(aside, source.absolute(), hashes, dtypes, checkpoint.weights.shapes)
            copy_companions(checkpoint.model, aside)
    finally:
        hashes.close()
    return locate(target)


def _stream_to_megatron(
    checkpoint: Checkpoint,
    writer: MegatronWriter,
    hashes: Hashes,
    dtypes: dict[str, str],
    advance: Callable[[int], None],
) -> None:
    weights = checkpoint.weights
    try:
        for entry in weight_entries(checkpoint.shape, "te"):
            wanted = dtypes[entry.hf[0]]
            for piece in pieces(entry, checkpoint.shape, weights.shapes, BLOCK_BYTES, ITEM_BYTES[wanted]):
                parts = [cast(weights.read(*part), weights.dtype(part[0]), wanted) for part in piece.parts]
                for (name, _, _), part in zip(piece.parts, parts, strict=True):
                    hashes.add(name, part)
                rows = joined(entry, parts, checkpoint.shape)
                writer.write(entry, piece.start, rows)
                advance(rows.nbytes)
        writer.close()
    finally:
        writer.abandon()


def megatron_to_hf(
    source: Path,
    target: Path,
    model: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """`model`: folder of config and tokenizer, where `source` does not lead to one. Raises ConfigError as above."""
    check_target(target, 0)
    checkpoint = locate(source, model)
    if not checkpoint.megatron:
        raise ConfigError(f"{source} is a Hugging Face folder already; give a checkpoint with Megatron weights")
    dtypes = _dtypes(checkpoint, dtype)
    shapes = checkpoint.weights.shapes
    check_target(target, _num_bytes(checkpoint, dtypes))
    hashes = Hashes()
    try:
        with written_aside(target) as aside, byte_bar("converting", _num_bytes(checkpoint, dtypes)) as advance:
            writer = FolderWriter(aside, {name: (dtypes[name], shape) for name, shape in shapes.items()}, shard_bytes)
            try:
                for name, shape in shapes.items():
                    for start, stop in blocks(shape, ITEM_BYTES[dtypes[name]]):
                        rows = checkpoint.weights.read(name, start, stop)
                        rows = np.ascontiguousarray(cast(rows, checkpoint.weights.dtype(name), dtypes[name]))
                        hashes.add(name, rows)
                        writer.write(name, start, rows)
                        advance(rows.nbytes)
                writer.close()
            finally:
                writer.abandon()
            write_manifest(aside, source.absolute(), hashes, dtypes, shapes)
            copy_companions(checkpoint.model, aside)
    finally:
        hashes.close()
    return locate(target)


def blocks(shape: tuple[int, ...], itemsize: int) -> list[tuple[int, int]]:
    """Ranges of rows of about BLOCK_BYTES."""
    return list(ranges(shape[0], BLOCK_BYTES // (prod(shape[1:]) * itemsize)))


def _dtypes(checkpoint: Checkpoint, dtype: str | None) -> dict[str, str]:
    """Of each Hugging Face tensor once written. Raises ConfigError where joined tensors have two."""
    dtypes = {name: dtype or checkpoint.weights.dtype(name) for name in checkpoint.weights.shapes}
    by_key: dict[str, str] = {}
    for entry in weight_entries(checkpoint.shape, "te"):
        for name in entry.hf:
            if by_key.setdefault(entry.key, dtypes[name]) != dtypes[name]:
                raise ConfigError(
                    f"{checkpoint.folder}: {name!r} has dtype {dtypes[name]}, others that Megatron keeps in one tensor"
                    f" with it {by_key[entry.key]}; name one for all by --dtype"
                )
    return dtypes


def _num_bytes(checkpoint: Checkpoint, dtypes: dict[str, str]) -> int:
    return sum(num_bytes(dtypes[name], shape) for name, shape in checkpoint.weights.shapes.items())
