"""The questions of evaluation files, which training prompts may not hold."""

from pathlib import Path

from megatron_urpo.config.pack import PackConfig
from megatron_urpo.data.decontaminate import EvaluationQuestions, question_of
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import find_files, read_chunks
from megatron_urpo.data.sources import RowError, reader_of
from megatron_urpo.packing.plan import columns_of
from megatron_urpo.packing.rows import raw_rows, renamed
from megatron_urpo.types import Message


def read_questions(config: PackConfig) -> EvaluationQuestions | None:
    """Every question of `decontaminate_against`; None where there is none.

    Raises:
        DataError: a row that cannot be read: with a question missing, what it would have found stays in the store.
    """
    questions: list[str] = []
    places: list[str] = []
    for index, files in enumerate(config.decontaminate_against):
        field = f"decontaminate_against.{index}"
        columns, required = columns_of(files, field)
        reader = reader_of(files.dataset, f"{field}.dataset")
        for file in find_files(files.path, f"{field}.path"):
            for chunk in read_chunks(file, columns, required, config.max_row_mib << 20):
                for number, row in raw_rows(chunk):
                    questions.append(_question(row, files.columns, reader.read, f"{file}:{number}"))
                    places.append(f"{file}:{number}")
    if not questions:
        return None
    rule = config.decontamination
    return EvaluationQuestions.build(questions, places, rule.ngram, rule.overlap)


def save_questions(config: PackConfig, file: Path) -> Path | None:
    """The file that the processes of the pool read; None where there is nothing to compare with."""
    questions = read_questions(config)
    if questions is None:
        return None
    questions.save(file)
    return file


def _question(row: object, columns: dict[str, str], read: object, place: str) -> str:
    try:
        if isinstance(row, RowError):
            raise row
        if not isinstance(row, dict):
            raise RowError("the row is no object")
        assert callable(read)
        messages = read(renamed(row, columns))["messages"]
    except RowError as error:
        raise DataError(f"decontaminate_against: {place}: {error}; every evaluation row has to be read") from None
    return question_of([Message(message["role"], message["content"]) for message in messages])
