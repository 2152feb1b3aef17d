"""Where a step's groups come from: collected when the step begins, or while the step before it trains.

`InStep` is on policy: the weights that write a batch are those that learn from it first. `OneAhead`
(`rollout.overlap: 1`) keeps servers and trainer busy at the same time: the batch of step k + 1 is written by the
weights that step k starts from, one update older than those that learn from it. The loss has to know: importance
weights between the two (`loss.rollout_correction`), or ratios to the engine's own probabilities
(`loss.old_logprobs: rollout`).

A run that is told to stop gives up what is being written: `take` gives None, and the prompts are as if they had not
been drawn.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from megatron_urpo.checkpoints.state import Ahead
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.loop.rank0 import NoRollout, Rank0
from megatron_urpo.loop.resample import collect_step
from megatron_urpo.loop.weights import send_weights
from megatron_urpo.policy.policy import Policy
from megatron_urpo.protocols import Abandoned
from megatron_urpo.rollout.collect import Rollout
from megatron_urpo.types import Prompt


class InStep:
    """Every method is collective: all ranks call it and get the same."""

    def __init__(self, rank0: Rank0, policy: Policy, prompts: PromptStream) -> None:
        self._rank0, self._policy, self._prompts = rank0, policy, prompts

    def take(self, step: int) -> Rollout | None:
        """The groups of `step`; the engine has the weights of version `step`. None where the run is to stop."""
        before = self._prompts.state()
        try:
            return collect_step(self._rank0.config.rollout, self._prompts, self._collect, step)
        except Abandoned:
            self._prompts.load_state(before)
            return None

    def settle(self) -> None:
        """Returns when nothing is generated any more: new weights may be sent."""

    def position(self) -> tuple[dict[str, Any], Ahead | None]:
        """For a checkpoint after the last step that was taken: the prompt stream's state, and a batch that waits."""
        return self._prompts.state(), None

    def _collect(self, batch: Sequence[Prompt], step: int, earlier: Sequence[Prompt]) -> Rollout:
        from_rank0 = self._policy.parallel.from_rank0
        while True:
            rollout = from_rank0(self._rank0.collect, batch, step, earlier)
            if isinstance(rollout, Rollout):
                return rollout
            if rollout is NoRollout.ABANDONED:
                raise Abandoned("told to stop")
            send_weights(self._policy, self._rank0, version=step)


class OneAhead(InStep):
    """The first batch, and one whose servers were all lost, is collected in its own step.

    `ahead`: the batch of the first step, where an earlier run has collected it.
    """

    def __init__(self, rank0: Rank0, policy: Policy, prompts: PromptStream, ahead: Ahead | None = None) -> None:
        super().__init__(rank0, policy, prompts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._ahead: Future[Rollout | NoRollout] | None = None
        self._batch: Sequence[Prompt] = ()
        self._before = prompts.state()
        if ahead is not None:
            prompts.load_state(ahead.stream)
            self._batch = [group.prompt for group in ahead.rollout.groups]
            self._ahead = Future()
            self._ahead.set_result(ahead.rollout)

    def take(self, step: int) -> Rollout | None:
        """The groups of `step`. From here to `settle` those of the next are written, by version `step`."""
        rollout = self._policy.parallel.from_rank0(self._join) if self._batch else NoRollout.WEIGHTS_LOST
        try:
            if rollout is NoRollout.ABANDONED:
                raise Abandoned("told to stop")
            if not isinstance(rollout, Rollout):
                rollout = self._collect(self._batch or self._prompts.next_batch(step), step, ())
        except Abandoned:
            self._prompts.load_state(self._before)
            return None
        self._before, self._batch, self._ahead = self._prompts.state(), (), None
        if step + 1 < self._rank0.config.num_steps:
            self._batch = self._prompts.next_batch(step + 1)
            if self._policy.parallel.rank == 0:
                self._ahead = self._thread.submit(self._rank0.collect, self._batch, step + 1, (), step)
        return rollout

    def settle(self) -> None:
        self._policy.parallel.from_rank0(self._wait)

    def position(self) -> tuple[dict[str, Any], Ahead | None]:
        """The stream as if the batch ahead had not been drawn, for a run that cannot use it, and that batch.

        Rank 0 alone has it; it is called after `settle`, or where `take` gave None.
        """
        rollout = self._ahead.result() if self._ahead is not None else None
        return self._before, Ahead(self._prompts.state(), rollout) if isinstance(rollout, Rollout) else None

    def _join(self) -> Rollout | NoRollout:
        assert self._ahead is not None
        return self._ahead.result()

    def _wait(self) -> None:
        if self._ahead is not None:
            self._ahead.result()
