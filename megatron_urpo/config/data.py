"""Prompts: where they come from and in what mixture."""

from pathlib import Path

from pydantic import Field, PositiveInt

from megatron_urpo.config.section import NonNegative, Section
from megatron_urpo.types import Task


class Phase(Section):
    until: PositiveInt | None = Field(None, description="first step that is no longer in this phase; last: omit")
    mix: dict[Task, NonNegative] = Field(description="weight of each task")


class DataConfig(Section):
    train: tuple[Path, ...] = Field(description="prompt stores: folders that `pack` wrote, JSONL or Parquet files")
    prompts_per_step: PositiveInt = 256
    curriculum: tuple[Phase, ...] = (
        Phase(until=100, mix={"preference": 1, "reasoning": 1}),
        Phase(mix={"preference": 1, "reasoning": 1, "instruction": 1}),
    )
