"""Steps that teach nothing: counted while they come in a row, and an error with the likely cause when too many do."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_urpo.config import Config

MAX_NOT_FINITE_STEPS = 3


class TrainingStopped(RuntimeError):
    """A run that cannot go on to any good; the message says why and where to look."""


@dataclass(frozen=True)
class Health:
    """How many steps in a row, up to the last, had no sample, and how many a loss or gradient that is not finite."""

    empty_steps: int = 0
    not_finite_steps: int = 0

    def after(self, num_samples: int, stats: Mapping[str, float]) -> "Health":
        """The health after one more step with `num_samples` and the update's metrics."""
        return Health(
            empty_steps=0 if num_samples else self.empty_steps + 1,
            not_finite_steps=self.not_finite_steps + 1 if stats.get("policy/not_finite") else 0,
        )

    def check(self, config: Config, dropped: Mapping[str, int]) -> None:
        """Raises TrainingStopped. `dropped`: the last step's groups that were not trained on, by cause."""
        if self.empty_steps >= config.max_empty_steps:
            cause = max(dropped, key=lambda name: dropped[name])
            raise TrainingStopped(
                f"{self.empty_steps} steps in a row had nothing to learn from; most groups were dropped as {cause}:"
                f" {_HINTS.get(cause, _UNREADABLE)} (the transcripts of the run folder show them)"
            )
        if self.not_finite_steps >= MAX_NOT_FINITE_STEPS:
            raise TrainingStopped(
                f"{self.not_finite_steps} steps in a row had a loss or gradient that is not finite and changed nothing;"
                f" their batches are in {config.run_dir / 'batches'}, and `megatron-urpo replay {config.run_dir} --step"
                " N` looks into one; lower optimizer.lr, set optimizer.clip_grad, or train in float32 to see whether"
                " the precision is the cause"
            )


_UNREADABLE = "the referee's verdicts cannot be read: warm it up on preference data first"
_HINTS = {
    "no_signal": "all completions of each group earned the same: the prompts are too hard, too easy, or the"
    " completions are all alike",
    "prompt_too_long": "questions are longer than rollout.max_prompt_tokens",
    "scoring_prompt_too_long": "scoring prompts are longer than referee.max_prompt_tokens",
    "engine_failed": "the engine's servers answered no request; their logs are in the run folder",
}
