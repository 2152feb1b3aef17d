"""Published rows to prompts, one chunk of a file at a time: what a row becomes, or why it becomes nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow

from megatron_urpo.config.pack import FilterConfig, SourceConfig
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import Chunk
from megatron_urpo.data.rows import parse_row
from megatron_urpo.data.sources import Reader, RowError
from megatron_urpo.data.sources.base import Fields, Row
from megatron_urpo.types import PreferencePrompt, Prompt, ReasoningPrompt, Task

FIELDS: dict[Task, tuple[str, ...]] = {
    "reasoning": ("messages", "answers", "tests"),
    "preference": ("messages", "responses", "scores", "ranks"),
    "instruction": ("messages",),
}


@dataclass(frozen=True, slots=True)
class Left:
    """A row that is not in the store; `cause` is one of a few words, `detail` for people."""

    number: int
    cause: str
    detail: str = ""


def raw_rows(chunk: Chunk) -> Iterator[tuple[int, object | RowError]]:
    """(number, row) of a chunk; an error in place of a row that cannot be decoded."""
    if chunk.table is not None:
        with pyarrow.ipc.open_stream(chunk.table) as stream:
            yield from zip(chunk.numbers, stream.read_all().to_pylist(), strict=True)
        return
    for number, line in zip(chunk.numbers, chunk.lines, strict=True):
        yield number, _decode(line)


def _decode(line: bytes | None) -> object | RowError:
    if line is None:
        return RowError("the row is longer than max_row_mib")
    try:
        value: object = json.loads(line.decode())
        return value
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON: {' '.join(str(error).split())[:200]}")


class RowReader:
    """Rows of one source to prompts."""

    def __init__(self, source: SourceConfig, reader: Reader, task: Task, max_row_bytes: int) -> None:
        self._source, self._reader, self._task = source, reader, task
        self._suffix = (reader.suffix if source.suffix is None else source.suffix) if task == "reasoning" else ""
        self._max_row_bytes = max_row_bytes

    def __call__(self, number: int, row: object | RowError, prompt_id: str) -> Prompt | Left:
        try:
            if isinstance(row, RowError):
                raise row
            if not isinstance(row, Mapping):
                raise RowError(f"the row is {type(row).__name__}, not an object")
            if unmet := first_unmet(row, self._source.filters):
                return Left(number, "filtered", ".".join(unmet.field))
            fields = self._reader.read(renamed(row, self._source.columns))
            prompt = self._prompt(fields, prompt_id)
        except (RowError, DataError) as error:
            return Left(number, "rejected", str(error).removeprefix("row: "))
        return prompt

    def _prompt(self, fields: Fields, prompt_id: str) -> Prompt:
        """Checked by the rules of a store's rows. Raises RowError and DataError."""
        kept = {name: value for name, value in fields.items() if name in FIELDS[self._task]}
        base = {"id": prompt_id, "task": self._task, "source": self._source.name}
        prompt = parse_row(base | kept | {"messages": self._with_suffix(kept["messages"])}, "row")
        texts = [message.content for message in prompt.messages]
        if isinstance(prompt, ReasoningPrompt):
            texts += prompt.answers if prompt.tests is None else [repr(prompt.tests).replace("\\x00", "\0")]
        if isinstance(prompt, PreferencePrompt):
            texts += prompt.responses
        if any("\0" in text for text in texts):
            raise RowError("a text has a NUL character")
        if sum(map(len, texts)) > self._max_row_bytes:
            raise RowError("the row is longer than max_row_mib")
        return prompt

    def _with_suffix(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        if not messages or not self._suffix:
            return list(messages)
        last = messages[-1]
        if "\\boxed" in last["content"]:
            return list(messages)
        return [*messages[:-1], {**last, "content": f"{last['content']}\n{self._suffix}"}]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row by the names that its reader knows."""
    return {**row, **{ours: row.get(theirs) for ours, theirs in columns.items()}} if columns else row


def first_unmet(row: Row, filters: Sequence[FilterConfig]) -> FilterConfig | None:
    return next((condition for condition in filters if not _meets(row, condition)), None)


def _meets(row: Row, condition: FilterConfig) -> bool:
    value: Any = row
    for name in condition.field:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None or (condition.one_of is not None and not _among(value, condition.one_of)):
        return False
    if condition.min is None and condition.max is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (condition.min is None or value >= condition.min) and (condition.max is None or value <= condition.max)


def _among(value: Any, accepted: Sequence[Any]) -> bool:
    """True is not 1 here, as it is in Python."""
    return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in accepted)
