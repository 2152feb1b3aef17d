"""What a rule says about one completion, for answers and programs alike."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["correct", "wrong", "no_answer", "verifier_error"]

CODE_CAUSES = (
    "wrong_output",  # a test failed
    "runtime_error",  # it raised, exited or was killed before it had answered
    "time_limit",
    "output_limit",
    "sandbox_lost",  # its sandbox died, and a second one over the same program
    "bad_tests",  # the tests do not load, or pass what cannot be sent to a sandbox: a verifier_error
)


@dataclass(frozen=True, slots=True)
class Verified:
    """`reward` is None (masked) where the verifier failed.

    `cause`: why a program was not right, one of CODE_CAUSES.
    """

    outcome: Outcome
    reward: float | None
    cause: str = ""


def verified(outcome: Outcome, cause: str = "") -> Verified:
    """1 for a right answer, 0 for a wrong or missing one; None (masked) where the verifier failed."""
    if outcome == "verifier_error":
        return Verified(outcome, None, cause)
    return Verified(outcome, 1.0 if outcome == "correct" else 0.0, cause)
