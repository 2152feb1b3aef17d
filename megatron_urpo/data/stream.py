"""The endless stream of prompts: curriculum, exact mixture, and a shuffle without repetition inside an epoch.

A pure function of (store, curriculum, seed, position): every rank that asks sees the same prompts without a word
exchanged, and a stream that is resumed from its state goes on as if it had never stopped.

Prompts are drawn from pools: one for each task, or one for each source of a task whose sources were packed with
weights. A pool is walked in permutations of its own, epoch by epoch. Nothing here grows with the text of the prompts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_urpo.config.data import Phase
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.mixture import exact_shares, next_source, next_task
from megatron_urpo.data.table import PromptTable
from megatron_urpo.types import TASKS, Prompt, Task

_ORDER = 2  # of the permutations: a position says nothing about another version's
_BLOCK = 1 << 16


class PromptStream:
    """Gives the prompts of each step.

    - The phase of a step is the first whose `until` lies above it; mixture counts restart where a phase begins.
    - Each pool walks its own rows in permutations seeded by (seed, pool, epoch).

    Raises:
        DataError: a phase asks for a task of which the store has no row; stores that weigh the sources of a task
            differently.
    """

    def __init__(self, prompts: Sequence[Prompt], curriculum: Sequence[Phase], prompts_per_step: int, seed: int):
        self._prompts = PromptTable.of(prompts)
        self._curriculum = tuple(curriculum)
        self._prompts_per_step = prompts_per_step
        self._seed = seed
        self._rows, self._shares = _pools(self._prompts)
        self._fingerprint = _fingerprint(self._prompts)
        self._phase = 0
        self._counts: dict[Task, int] = dict.fromkeys(TASKS, 0)
        self._drawn: dict[str, int] = dict.fromkeys(self._rows, 0)
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}
        self._check_tasks()

    def next_batch(self, step: int) -> list[Prompt]:
        """The `prompts_per_step` prompts of `step`; asking moves the stream on."""
        phase = self._phase_of(step)
        if phase != self._phase:
            self._phase = phase
            self._counts = dict.fromkeys(TASKS, 0)
        weights = self._curriculum[phase].mix
        batch = []
        for _ in range(self._prompts_per_step):
            task = next_task(self._counts, weights)
            self._counts[task] += 1
            batch.append(self._draw(task))
        return batch

    def replacements(self, tasks: Sequence[Task]) -> list[Prompt]:
        """The next prompt of each of `tasks`, in place of others of the same step: the mixture does not count them."""
        return [self._draw(task) for task in tasks]

    def state(self) -> dict[str, Any]:
        """The position, ready for JSON: a few hundred bytes whatever the store's size."""
        return {
            "fingerprint": self._fingerprint,
            "seed": self._seed,
            "phase": self._phase,
            "counts": dict(self._counts),
            "drawn": dict(self._drawn),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state()` gave.

        Raises:
            DataError: the position is damaged, or belongs to other prompts or another seed; the stream stays where it
                was.
        """
        try:
            theirs = {name: state[name] for name in ("fingerprint", "seed")}
            phase = int(state["phase"])
            counts = {task: int(state["counts"][task]) for task in TASKS}
            drawn = {pool: int(state["drawn"].get(pool, 0)) for pool in self._rows}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"run_dir: the prompt stream's position in the checkpoint is damaged ({error!r}); remove that"
                " checkpoint to go on from the one before it"
            ) from None
        for name, ours in (("fingerprint", self._fingerprint), ("seed", self._seed)):
            if theirs[name] != ours:
                what = "data.train: the store's prompts (ids, tasks, order)" if name == "fingerprint" else "seed"
                raise DataError(
                    f"{what}: {ours!r} now, {theirs[name]!r} in the checkpoint; a run goes on only over the prompts it"
                    " began with: restore them or start a new run folder"
                )
        self._phase, self._counts, self._drawn = phase, counts, drawn

    def _phase_of(self, step: int) -> int:
        for index, phase in enumerate(self._curriculum):
            if phase.until is None or step < phase.until:
                return index
        raise ValueError(f"step {step} lies after the last phase of the curriculum; leave out its `until`")

    def _draw(self, task: Task) -> Prompt:
        shares = self._shares[task]
        pool = task if not shares else next_source({name: self._drawn[name] for name in shares}, shares)
        rows = self._rows[pool]
        epoch, position = divmod(self._drawn[pool], len(rows))
        self._drawn[pool] += 1
        if pool not in self._orders or self._orders[pool][0] != epoch:
            self._orders[pool] = (epoch, _permutation(f"{self._seed}/{pool}/{epoch}", len(rows)))
        return self._prompts[int(rows[self._orders[pool][1][position]])]

    def _check_tasks(self) -> None:
        sizes = {
            task: sum(len(self._rows[pool]) for pool in self._shares[task] or (task,) if pool in self._rows)
            for task in TASKS
        }
        for index, phase in enumerate(self._curriculum):
            for task in exact_shares(phase.mix):
                if not sizes[task]:
                    counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
                    raise DataError(
                        f"data.curriculum.{index}.mix.{task}: asks for {task} prompts, but the store has none"
                        f" (rows: {counts}); add rows to data.train or take the task out of the phase"
                    )


def _pools(prompts: PromptTable) -> tuple[dict[str, NDArray[np.int64]], dict[Task, dict[str, Fraction]]]:
    """(indices of each pool's prompts; for each task the share of each of its pools, none where it is one pool)."""
    rows: dict[str, NDArray[np.int64]] = {}
    shares: dict[Task, dict[str, Fraction]] = {task: {} for task in TASKS}
    sources = prompts.pools()
    for task in TASKS:
        given = [dict(manifest.weights[task]) for _, manifest in prompts.manifests if task in manifest.weights]
        if not given:
            if task in sources:
                rows[task] = np.sort(np.concatenate(list(sources[task].values())))
            continue
        if any(weights != given[0] for weights in given) or not set(sources[task]) <= set(given[0]):
            raise DataError(
                f"data.train: a store was packed with weights for the sources of {task} ({', '.join(given[0])}), others"
                " have other weights or sources; pack them together"
            )
        present = {name: given[0][name] for name in sources[task] if given[0][name] > 0}
        total = sum(Fraction(str(weight)) for weight in present.values())
        for name, weight in present.items():
            rows[f"{task}/{name}"] = sources[task][name]
            shares[task][f"{task}/{name}"] = Fraction(str(weight)) / total
    return rows, shares


def _permutation(seed: str, size: int) -> NDArray[np.int64]:
    """A permutation that depends on nothing but its arguments.

    By sorting raw output of Philox, which numpy promises to keep; that of its `shuffle` may change with a release.
    """
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def _fingerprint(prompts: PromptTable) -> str:
    """Of ids, tasks and their order."""
    digest = hashlib.sha256()
    tasks, ids = prompts.column("task"), prompts.column("id")
    for start in range(0, len(prompts), _BLOCK):
        block = (column.slice(start, _BLOCK).to_pylist() for column in (tasks, ids))
        digest.update("".join(f"{task}\0{name}\0" for task, name in zip(*block, strict=True)).encode())
    return f"{_ORDER}:{len(prompts)}:{digest.hexdigest()[:32]}"
