"""Counts and lengths of what is written, and the manifest that is made of them."""

import hashlib
from collections import defaultdict
from typing import Any

from megatron_urpo.data.manifest import Manifest, Shard
from megatron_urpo.packing.left_out import LeftOut
from megatron_urpo.packing.plan import Plan, source_weights
from megatron_urpo.types import TASKS

_UNRECORDED = {"processes", "output", "overwrite"}  # the store does not depend on them


class Lengths:
    """Number and tokens of prompts by task and source."""

    def __init__(self) -> None:
        self._by_source: dict[tuple[str, str], list[int]] = {}
        self._histograms: dict[tuple[str, str], list[int]] = defaultdict(list)

    def add(self, table: Any) -> None:
        names = (table[name].to_pylist() for name in ("task", "source", "num_tokens"))
        for task, source, length in zip(*names, strict=True):
            total = self._by_source.setdefault((task, source), [0, 0, 0])
            total[0] += 1
            total[1] += length
            total[2] = max(total[2], length)
            bins = self._histograms[task, source]
            place = max(0, length.bit_length() - 1)
            bins += [0] * (place + 1 - len(bins))
            bins[place] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        return {task: {source: self._by_source[task, source][0] for source in self._sources(task)}
                for task in self._tasks()}  # fmt: skip

    def lengths(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {task: {source: self._described(task, source) for source in self._sources(task)}
                for task in self._tasks()}  # fmt: skip

    def _described(self, task: str, source: str) -> dict[str, Any]:
        _, total, longest = self._by_source[task, source]
        return {"num_tokens": total, "longest": longest, "histogram": self._histograms[task, source]}

    def _tasks(self) -> list[str]:
        return [task for task in TASKS if self._sources(task)]

    def _sources(self, task: str) -> list[str]:
        return sorted(source for of, source in self._by_source if of == task)


def describe(plan: Plan, lengths: Lengths, left_out: LeftOut, shards: list[Shard]) -> Manifest:
    config = plan.config.model_dump(mode="json")
    digest = hashlib.sha256("".join(f"{shard.rows}:{shard.sha256}\n" for shard in shards).encode())
    removed = {
        source.name: {"read": read} | {cause: counts[cause] for cause in sorted(counts)}
        for source, read, counts in zip(plan.config.sources, left_out.num_read, left_out.counts, strict=True)
    }
    return Manifest(
        shards=tuple(shards),
        content_hash=digest.hexdigest(),
        counts=lengths.counts(),
        weights=source_weights(plan.config),
        lengths=lengths.lengths(),
        removed=removed,
        tokenizer={"path": str(plan.config.tokenizer), **plan.tokenizer},
        template=plan.config.template.model_dump(),
        config={name: value for name, value in config.items() if name not in _UNRECORDED},
    )
