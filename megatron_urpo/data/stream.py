"""The endless stream of prompts: curriculum, exact mixture, and a shuffle without repetition inside an epoch.

A pure function of (store, curriculum, seed, position): every rank that asks sees the same prompts without a word
exchanged, and a stream that is resumed from its state goes on as if it had never stopped.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_urpo.config.data import Phase
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.mixture import exact_shares, next_task
from megatron_urpo.types import TASKS, Prompt, Task


class PromptStream:
    """Gives the prompts of each step.

    - The phase of a step is the first whose `until` lies above it; mixture counts restart where a phase begins.
    - Each task walks its own rows in permutations seeded by (seed, task, epoch).

    Raises:
        DataError: a phase asks for a task of which the store has no row.
    """

    def __init__(self, prompts: Sequence[Prompt], curriculum: Sequence[Phase], prompts_per_step: int, seed: int):
        self._rows: dict[Task, list[Prompt]] = {task: [p for p in prompts if p.task == task] for task in TASKS}
        self._curriculum = tuple(curriculum)
        self._prompts_per_step = prompts_per_step
        self._seed = seed
        self._fingerprint = _fingerprint(prompts)
        self._phase = 0
        self._counts: dict[Task, int] = dict.fromkeys(TASKS, 0)
        self._drawn: dict[Task, int] = dict.fromkeys(TASKS, 0)
        self._orders: dict[Task, tuple[int, list[int]]] = {}
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
            counts, drawn = ({task: int(state[name][task]) for task in TASKS} for name in ("counts", "drawn"))
        except (KeyError, TypeError, ValueError) as error:
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
        rows = self._rows[task]
        epoch, position = divmod(self._drawn[task], len(rows))
        self._drawn[task] += 1
        if task not in self._orders or self._orders[task][0] != epoch:
            order = list(range(len(rows)))
            # A string seeds by SHA-512; a tuple would seed by hash(), which differs between processes.
            random.Random(f"{self._seed}/{task}/{epoch}").shuffle(order)
            self._orders[task] = (epoch, order)
        return rows[self._orders[task][1][position]]

    def _check_tasks(self) -> None:
        for index, phase in enumerate(self._curriculum):
            for task in exact_shares(phase.mix):
                if not self._rows[task]:
                    counts = ", ".join(f"{name} {len(rows)}" for name, rows in self._rows.items())
                    raise DataError(
                        f"data.curriculum.{index}.mix.{task}: asks for {task} prompts, but the store has none"
                        f" (rows: {counts}); add rows to data.train or take the task out of the phase"
                    )


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.task}\0{prompt.id}\0".encode())
    return f"{len(prompts)}:{digest.hexdigest()[:32]}"
