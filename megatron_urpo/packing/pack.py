"""`pack`: read, compare, shuffle, write.

1. Every chunk of every file goes through the pool (`chunks.py`); rows are spilled, keys and rejects are written down.
2. Duplicates are found over all sources, then each source's `limit` is drawn.
3. What is left goes out in an order that depends on seed and ids alone.

Memory holds some thirty bytes a row and otherwise a few chunks, one partition of keys or one bucket of rows. Everything
is written in a folder beside the output, which takes its name at the very end.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_urpo.config.pack import PackConfig
from megatron_urpo.data.duplicates import EXACT, KeyWriter, find_duplicates, num_bands
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import Chunk, read_chunks
from megatron_urpo.data.manifest import Manifest, write_manifest
from megatron_urpo.data.shards import ShardWriter
from megatron_urpo.packing.chunks import pack_chunk, start_process
from megatron_urpo.packing.describe import Lengths, describe
from megatron_urpo.packing.evaluation import save_questions
from megatron_urpo.packing.left_out import LeftOut
from megatron_urpo.packing.plan import Plan, make_plan
from megatron_urpo.packing.pool import ordered_map
from megatron_urpo.packing.progress import PackProgress
from megatron_urpo.packing.rows import Left
from megatron_urpo.packing.spill import Spill


def pack(config: PackConfig) -> Manifest:
    """Writes the store of `config` to its output. The same input and config give the same bytes.

    Raises:
        DataError: what is wrong with config, tokenizer or files, or too many rows of a source that do not fit; the
            output is then as it was, and the rejected rows are beside it.
    """
    plan = make_plan(config)
    with ExitStack() as stack:
        work = stack.enter_context(plan.workplace())
        scratch, store = work / "scratch", work / "store"
        scratch.mkdir()
        store.mkdir()
        progress = stack.enter_context(PackProgress(plan))
        left_out = LeftOut(store, plan)
        stack.callback(left_out.close)
        spill = _read(plan, scratch, left_out, progress)
        progress.phase("comparing")
        kept = _choose(plan, scratch, spill, left_out)
        left_out.close()
        progress.phase("writing")
        manifest = _write(plan, scratch, store, spill, kept, left_out)
        plan.publish(store)
        progress.finish(manifest)
    return manifest


def _read(plan: Plan, scratch: Path, left_out: LeftOut, progress: PackProgress) -> Spill:
    """Every row of every source: spilled with its keys, or left out with its cause."""
    near = plan.config.duplicates.near
    evaluation = save_questions(plan.config, scratch / "evaluation.npz")
    spill, source = Spill(scratch / "rows"), 0
    with ExitStack() as stack:
        stack.callback(spill.close)
        keys = KeyWriter(scratch / "keys", num_bands(near) if near else 0)
        stack.callback(keys.close)
        run = stack.enter_context(ordered_map(plan.processes, start_process, (plan.config, evaluation)))
        for packed in run(pack_chunk, _chunks(plan)):
            file = plan.files[packed.file]
            if file.source != source:
                left_out.check_rejected(source)
                source = file.source
            left_out.num_read[source] += packed.num_read
            for left in packed.left:
                left_out.add(file, left)
            if len(packed.numbers):
                spill.write(packed.batch, packed.order, packed.numbers, source, packed.file)
                keys.write(packed.exact, packed.bands, packed.signature)
            progress.read(packed.file, packed.position, left_out.num_read[source])
        left_out.check_rejected(source)
    return spill


def _chunks(plan: Plan) -> Iterator[tuple[int, int, str, Chunk]]:
    """Arguments of `pack_chunk` for every chunk of every file, in order."""
    for index, file in enumerate(plan.files):
        for chunk in read_chunks(file.path, file.columns, file.required, plan.config.max_row_mib << 20):
            yield file.source, index, file.name, chunk


def _choose(plan: Plan, scratch: Path, spill: Spill, left_out: LeftOut) -> NDArray[np.bool_]:
    """Which of the spilled rows the store gets: no duplicates, and no more of a source than its limit."""
    duplicates = plan.config.duplicates
    earlier, kinds = find_duplicates(scratch / "keys", spill.num_rows, duplicates.exact, duplicates.near)
    for row in np.flatnonzero(earlier >= 0):
        (file, number), (first_file, first) = spill.place(int(row)), spill.place(int(earlier[row]))
        cause = "duplicate" if kinds[row] == EXACT else "near_duplicate"
        left_out.add(plan.files[file], Left(number, cause, f"of {plan.files[first_file].path}:{first}"))
    kept = earlier < 0
    sources, order = spill.sources(), spill.order()
    for index, source in enumerate(plan.config.sources):
        rows = np.flatnonzero(kept & (sources == index))
        if source.limit is not None and len(rows) > source.limit:
            over = rows[np.argsort(order[rows], kind="stable")[source.limit :]]
            kept[over] = False
            left_out.count(index, "over_limit", len(over))
    return kept


def _write(
    plan: Plan, scratch: Path, store: Path, spill: Spill, kept: NDArray[np.bool_], left_out: LeftOut
) -> Manifest:
    lengths = Lengths()
    with ShardWriter(store) as writer:
        for table in spill.ordered(kept, scratch):
            lengths.add(table)
            writer.write(table)
    if not writer.shards:
        raise DataError(f"sources: nothing is left to pack ({left_out.summary()})")
    manifest = describe(plan, lengths, left_out, writer.shards)
    write_manifest(store, manifest)
    return manifest
