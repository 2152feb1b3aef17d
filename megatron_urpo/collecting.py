"""Where a step's groups come from: collected when the step begins, or while the step before it trains.

`InStep` is on policy: the weights that write a batch are those that learn from it first. `OneAhead`
(`rollout.overlap: 1`) keeps servers and trainer busy at the same time: the batch of step k + 1 is written by the
weights that step k starts from, one update older than those that learn from it. The loss has to know: importance
weights between the two (`loss.rollout_correction`), or ratios to the engine's own probabilities
(`loss.old_logprobs: rollout`).
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from megatron_urpo.data.stream import PromptStream
from megatron_urpo.policy.policy import Policy
from megatron_urpo.rank0 import Rank0
from megatron_urpo.resample import collect_step
from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.types import Prompt
from megatron_urpo.weights import send_weights


class InStep:
    """Every method is collective: all ranks call it and get the same."""

    def __init__(self, rank0: Rank0, policy: Policy, prompts: PromptStream) -> None:
        self._rank0, self._policy, self._prompts = rank0, policy, prompts

    def take(self, step: int) -> Rollout:
        """The groups of `step`; the engine has the weights of version `step`."""
        return collect_step(self._rank0.config.rollout, self._prompts, self._collect, step)

    def settle(self) -> None:
        """Returns when nothing is generated any more: new weights may be sent."""

    def stream_state(self) -> dict[str, Any]:
        """The prompt stream's, for a checkpoint after the last step that was taken."""
        return self._prompts.state()

    def _collect(self, batch: Sequence[Prompt], step: int, earlier: Sequence[Prompt]) -> Rollout:
        from_rank0 = self._policy.parallel.from_rank0
        while (rollout := from_rank0(self._rank0.collect, batch, step, earlier)) is None:
            send_weights(self._policy, self._rank0, version=step)
        return rollout


class OneAhead(InStep):
    """The first batch, and one whose servers were all lost, is collected in its own step."""

    def __init__(self, rank0: Rank0, policy: Policy, prompts: PromptStream) -> None:
        super().__init__(rank0, policy, prompts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._ahead: Future[Rollout | None] | None = None
        self._batch: Sequence[Prompt] = ()
        self._before = prompts.state()

    def take(self, step: int) -> Rollout:
        """The groups of `step`. From here to `settle` those of the next are written, by version `step`."""
        rollout = self._policy.parallel.from_rank0(self._join) if self._batch else None
        if rollout is None:
            rollout = self._collect(self._batch or self._prompts.next_batch(step), step, ())
        self._before, self._batch = self._prompts.state(), ()
        if step + 1 < self._rank0.config.num_steps:
            self._batch = self._prompts.next_batch(step + 1)
            if self._policy.parallel.rank == 0:
                self._ahead = self._thread.submit(self._rank0.collect, self._batch, step + 1, (), step)
        return rollout

    def settle(self) -> None:
        self._policy.parallel.from_rank0(self._join)

    def stream_state(self) -> dict[str, Any]:
        """As if the batch ahead had not been drawn: a run that is resumed draws it again."""
        return self._before

    def _join(self) -> Rollout | None:
        return None if self._ahead is None else self._ahead.result()
