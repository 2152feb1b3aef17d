"""What scores: the referee's prompt and the verifiers."""

from typing import Literal

from pydantic import Field, PositiveInt

from megatron_urpo.config.section import NonNegative, Positive, Section

DEFAULT_SCORING_PROMPT = """\
You are a skilled expert at scoring responses. You will be given a question with multiple responses. \
Evaluate and score each response.
[The Begin of Question]{question}[The End of Question]
{responses}
#### Output Format Requirements ####
Scores: <the overall comprehensive score of all responses in order, separate by comma in the boxed, \
e.g., \\boxed{x, x} if there exists 2 responses>."""
DEFAULT_SCORED_RESPONSE = "[The Begin of Response {index}]{response}[The End of Response {index}]"


class TemplateConfig(Section):
    prompt: str = Field(DEFAULT_SCORING_PROMPT, description="has {question} and {responses}")
    response: str = Field(DEFAULT_SCORED_RESPONSE, description="has {response} and {index}")


class RefereeConfig(Section):
    template: TemplateConfig = TemplateConfig()
    score_range: tuple[float, float] = (0.0, 10.0)
    temperature: NonNegative = Field(0.0, description="of judging; 0 is greedy. The one re-ask samples at 1")
    votes: PositiveInt = Field(1, description="asks for one group, each with a fresh permutation")
    max_new_tokens: PositiveInt = 4096
    max_prompt_tokens: PositiveInt = 16384
    overflow: Literal["truncate", "skip"] = "truncate"


class CodeConfig(Section):
    isolation: Literal["namespaces", "processes", "any"] = Field(
        "namespaces", description="of programs; processes: limits only; any: the strongest that the host gives"
    )
    workers: PositiveInt = Field(2, description="programs at a time")
    reward: Literal["all", "fraction"] = Field("all", description="1 where all tests pass, or the fraction that does")
    timeout_seconds: Positive = Field(6.0, description="CPU time of a run: one stdin case, or all calls")
    memory_mib: PositiveInt = Field(512, description="address space of a process, memory of all of a program together")
    processes: PositiveInt = Field(8, description="of a program, threads included")
    file_mib: PositiveInt = Field(16, description="a file; all files together: four times that")
    output_kib: PositiveInt = Field(1024, description="printed or returned, of a run")


class VerifierConfig(Section):
    answer_pattern: str = Field("", description="regular expression of an answer that is not boxed; the last match")
    workers: PositiveInt = Field(2, description="killable child processes for mathematics")
    timeout_seconds: Positive = Field(2.0, description="CPU time of one comparison")
    memory_mib: PositiveInt = Field(1024, description="address space of a child")
    code: CodeConfig = CodeConfig()
