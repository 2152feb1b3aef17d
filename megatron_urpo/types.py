"""The records that stages exchange, in the order a prompt meets them.

    Prompt -> Completion (the player's or the referee's) -> Verdict -> Group with rewards -> Sample

All are frozen: a stage makes new records and never edits those it was given. Scores and gold values are
"larger is better" everywhere; a dataset's ranks are negated once, where they are read.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

Task = Literal["reasoning", "preference", "instruction"]
TASKS: tuple[Task, ...] = ("reasoning", "preference", "instruction")

FinishReason = Literal["stop", "length", "abort"]
VerdictOutcome = Literal["ok", "no_scores", "wrong_count", "not_a_number", "out_of_range", "truncated"]
VERDICT_OUTCOMES: tuple[VerdictOutcome, ...] = (
    "ok", "no_scores", "wrong_count", "not_a_number", "out_of_range", "truncated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class FunctionalTest:
    """A program is right if `check(f)` returns, where `test_code` defines check and f is the program's `entry_point`.

    `import_prefix` runs before both.
    """

    import_prefix: str
    test_code: str
    entry_point: str
    kind: ClassVar[str] = "functional"


@dataclass(frozen=True, slots=True)
class StdinTests:
    """A program is right if it answers each of `inputs` on its standard input with `outputs[i]`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: ClassVar[str] = "stdin"


@dataclass(frozen=True, slots=True)
class CallTests:
    """A program is right if `fn_name` returns `outputs[i]` (JSON) for each of `inputs` (JSON, one argument a line)."""

    fn_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: ClassVar[str] = "calls"


CodeTests = FunctionalTest | StdinTests | CallTests


@dataclass(frozen=True, slots=True)
class ReasoningPrompt:
    """A question with ground truth: either accepted `answers`, of which any is right, or `tests` of a program."""

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    source: str = ""
    tests: CodeTests | None = None
    task: ClassVar[Task] = "reasoning"


@dataclass(frozen=True, slots=True)
class PreferencePrompt:
    """A question with N >= 2 candidate responses; `gold[i]` is larger for a better `responses[i]`, ties allowed."""

    id: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    source: str = ""
    task: ClassVar[Task] = "preference"


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    """An open-ended question: no truth, no ranking; the group's own scores are its rewards."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    task: ClassVar[Task] = "instruction"


Prompt = ReasoningPrompt | PreferencePrompt | InstructionPrompt


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`num_completions` samples that continue `prompt_ids`.

    `seed` fixes the sampling: completion i draws from the stream (seed, i), whatever else is in its batch.
    `order` is the request's place among its contemporaries; an engine that forms batches does so by it.
    Requests of one `group` share much of their prompts; an engine with several servers sends them to the same.
    `temperature` 0 is greedy.
    """

    prompt_ids: tuple[int, ...]
    num_completions: int
    max_new_tokens: int
    temperature: float
    seed: int
    order: tuple[int, ...] = ()
    group: int | None = None


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) of a completion were written by policy version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens with the log-probabilities they were sampled at (natural log, after temperature).

    A stop token, when one was reached, is the last of `token_ids`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read from the referee's text; `scores` is in the candidates' own order, empty unless `ok`."""

    outcome: VerdictOutcome
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """A rendered scoring prompt. Position p shows candidate `permutation[p]`; `num_cut` candidates were shortened."""

    prompt_ids: tuple[int, ...]
    permutation: tuple[int, ...]
    num_cut: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One ask of the referee: prompt, its answer and what was read from it."""

    scoring: ScoringPrompt
    completion: Completion
    text: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt with their rewards.

    `prompt_ids` is what every completion continues: the chat-formatted question, or the scoring prompt for a
    `preference` prompt. `rewards[i]` is None where completion i is masked; `outcomes[i]` says how its reward came
    about (`correct`, `wrong`, `verifier_error`, a verdict outcome, `scored`, `masked_<cause>`).
    `judgements`: for `instruction` every ask, re-asks included; for `preference` one for each completion.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]
    outcomes: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()
    dropped: str | None = None
    causes: tuple[str, ...] = ()
    """Of programs: why each was not right, empty where it was; () for everything else."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as the trainer sees it. `group` is an index unique within the step."""

    group: int
    task: Task
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    rollout_logprobs: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)
