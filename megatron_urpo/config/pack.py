"""Packing: which published files become one prompt store, and what is left out of it."""

from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from megatron_urpo.config.reward import TemplateConfig
from megatron_urpo.config.section import Fraction, NonNegative, Section
from megatron_urpo.types import Task


class FilterConfig(Section):
    """A condition on the published row; a row that has no such field does not meet it."""

    field: tuple[str, ...] = Field(description="a.b.c, or a list of names where a name has dots in it")
    one_of: tuple[str | int | float | bool, ...] | None = None
    min: float | None = None
    max: float | None = None

    @field_validator("field", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split(".")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_condition(self) -> "FilterConfig":
        if self.one_of is None and self.min is None and self.max is None:
            raise ValueError("give one_of, min or max")
        return self


class FilesConfig(Section):
    """Published files of one format."""

    dataset: str = Field(description="reader of its rows, e.g. gsm8k, helpsteer3, prompt_answer")
    path: tuple[str, ...] = Field(
        description="files, globs or folders: .jsonl, .json, each also .gz or .zst, and .parquet"
    )
    columns: dict[str, str] = Field({}, description="names of the file's fields where they differ, e.g. {prompt: text}")

    @field_validator("path", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value


class SourceConfig(FilesConfig):
    name: str = Field("", description="in ids and tables; default: dataset")
    task: Task | None = Field(
        None, description="default: what the dataset is for; instruction takes the question alone"
    )
    weight: NonNegative | None = Field(
        None, description="share within its task, for every source of the task or none; default: by their sizes"
    )
    limit: PositiveInt | None = Field(None, description="prompts at most, drawn by seed")
    filters: tuple[FilterConfig, ...] = Field((), description="conditions {field, one_of | min, max}; all must hold")
    suffix: str | None = Field(None, description="added to reasoning questions that ask for no box; default: dataset's")


class PromptLimitsConfig(Section):
    """Prompts that are longer are left out. The run's own limits may be higher, not lower."""

    player: PositiveInt = Field(4096, description="chat-formatted question; the run's rollout.max_prompt_tokens")
    referee: PositiveInt = Field(16384, description="whole scoring prompt; the run's referee.max_prompt_tokens")


class DuplicatesConfig(Section):
    """Within and across sources of a task; the first one stays."""

    exact: bool = Field(True, description="the same text, letter case and white space aside")
    near: Fraction = Field(0.8, description="estimated Jaccard similarity of 5-grams of tokens from which on; 0: off")


class DecontaminationConfig(Section):
    ngram: PositiveInt = Field(8, description="words and marks in an n-gram")
    overlap: Fraction = Field(0.5, description="share of an evaluation question's n-grams that a prompt may not reach")


class PackConfig(Section):
    """One prompt store from the files of many publishers."""

    output: Path = Field(description="folder to write: Parquet shards, manifest.json, what was left out and why")
    overwrite: bool = Field(False, description="replace a store that is there")
    sources: tuple[SourceConfig, ...]
    tokenizer: Path = Field(description="Hugging Face folder whose tokenizer and chat template the run uses")
    template: TemplateConfig = Field(TemplateConfig(), description="the run's referee.template")
    seed: int = Field(0, description="of the shuffle, of `limit` and of `max_candidates`")
    max_prompt_tokens: PromptLimitsConfig = PromptLimitsConfig()
    max_candidates: int = Field(8, ge=2, description="of a preference row; of more, those that tell most are drawn")
    constant_rankings: bool = Field(
        False, description="keep rankings whose responses are all tied; every verdict on them earns 0"
    )
    max_rejected_fraction: Fraction = Field(0.01, description="of a source's rows, above which nothing is written")
    max_row_mib: PositiveInt = Field(16, description="a larger row is rejected")
    duplicates: DuplicatesConfig = DuplicatesConfig()
    decontaminate_against: tuple[FilesConfig, ...] = Field((), description="evaluation files {dataset, path, columns}")
    decontamination: DecontaminationConfig = DecontaminationConfig()
    processes: NonNegativeInt = Field(0, description="0: every core; the store does not depend on it")
