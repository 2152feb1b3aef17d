"""A pack config checked against its files: what is read, in what order, under which names, and where it goes."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.config.pack import FilesConfig, PackConfig, SourceConfig
from megatron_urpo.data.chat import load_tokenizer
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import find_files
from megatron_urpo.data.manifest import FILE
from megatron_urpo.data.sources import reader_of
from megatron_urpo.types import TASKS

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class InputFile:
    """`source`: index of its source. `name`: of the file in ids. `columns`: all that is read of a Parquet file."""

    path: Path
    source: int
    name: str
    size: int
    columns: tuple[str, ...]
    required: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`config` with every source's name and task filled in; `tokenizer` as `HuggingFaceTokenizer.identity` gives it."""

    config: PackConfig
    files: tuple[InputFile, ...]
    processes: int
    tokenizer: dict[str, str]

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """An empty folder beside the output, this process's alone; gone afterwards.

        Raises DataError where it is taken, cannot be made or the disk is full.
        """
        output = self.config.output
        folder, lock = (output.with_name(f".{output.name}.{end}") for end in ("unfinished", "lock"))
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            held = lock.open("w")
        except OSError as error:
            raise DataError(f"output: {output} cannot be written ({error}); give a path where you may write") from None
        with held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"output: another process is packing into {output}; wait for it") from None
            try:
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
                folder.mkdir()
                yield folder
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise DataError(
                    f"output: {output} does not fit on its disk ({os.strerror(error.errno)}); until it ends, packing"
                    " needs about three times the size of its rows there: make room or give another path; nothing was"
                    " left"
                ) from None
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink()

    def publish(self, store: Path) -> None:
        """Gives a finished folder the output's name."""
        output = self.config.output
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if output.exists():
            os.rename(output, old)
        os.rename(store, output)
        shutil.rmtree(old, ignore_errors=True)


def make_plan(config: PackConfig) -> Plan:
    """Raises DataError for the first thing wrong, before a row is read."""
    if not config.sources:
        raise DataError("sources: is empty; give at least one {dataset, path}")
    sources = tuple(_completed(source, f"sources.{index}") for index, source in enumerate(config.sources))
    for name in {source.name for source in sources}:
        if sum(source.name == name for source in sources) > 1:
            raise DataError(
                f"sources: two are called {name!r}; give them names of their own, since ids begin with them"
            )
    config = config.model_copy(update={"sources": sources})
    source_weights(config)
    _check_output(config)
    tokenizer = load_tokenizer(config.tokenizer, "tokenizer").identity()
    files = [file for index, source in enumerate(sources) for file in _files(index, source)]
    return Plan(config, tuple(files), config.processes or len(os.sched_getaffinity(0)), tokenizer)


def source_weights(config: PackConfig) -> dict[str, dict[str, float]]:
    """Weights by task and source, of tasks whose sources have them. Raises DataError."""
    weights: dict[str, dict[str, float]] = {}
    for task in TASKS:
        sources = [source for source in config.sources if source.task == task]
        given = {source.name: source.weight for source in sources if source.weight is not None}
        if given and len(given) < len(sources):
            without = next(source.name for source in sources if source.weight is None)
            raise DataError(
                f"sources: of the {task} sources {next(iter(given))} has a weight and {without} has none; give each"
                " one, or none of them"
            )
        if given and sum(given.values()) <= 0:
            raise DataError(f"sources: the weights of the {task} sources sum to 0; give at least one a positive weight")
        if given:
            weights[task] = given
    return weights


def columns_of(files: FilesConfig, field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(columns that may be read, columns that must be there), by the names that the files have."""
    reader = reader_of(files.dataset, f"{field}.dataset")
    known = (*reader.columns, *reader.optional)
    if unknown := [name for name in files.columns if name not in known]:
        raise DataError(
            f"{field}.columns: {unknown[0]!r} is no field of {files.dataset} rows; they have {', '.join(known)}"
        )
    theirs = {name: files.columns.get(name, name) for name in known}
    return tuple(theirs.values()), tuple(theirs[name] for name in reader.columns)


def id_names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell a source's files apart: below the folder that they share, without suffixes."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    short = [str(path.absolute().relative_to(root)).split(".")[0] or path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path.absolute().relative_to(root)) for path in paths]


def _completed(source: SourceConfig, field: str) -> SourceConfig:
    reader = reader_of(source.dataset, f"{field}.dataset")
    if source.task not in (None, reader.task, "instruction"):
        raise DataError(
            f"{field}.task: {source.dataset} gives {reader.task} prompts, or instruction prompts by its questions"
            f" alone; not {source.task}"
        )
    return source.model_copy(update={"name": source.name or source.dataset, "task": source.task or reader.task})


def _files(index: int, source: SourceConfig) -> list[InputFile]:
    field = f"sources.{index}"
    paths = find_files(source.path, f"{field}.path")
    columns, required = columns_of(source, field)
    columns += tuple(condition.field[0] for condition in source.filters)
    return [
        InputFile(path, index, name, path.stat().st_size, columns, required)
        for path, name in zip(paths, id_names(paths), strict=True)
    ]


def _check_output(config: PackConfig) -> None:
    output = config.output
    if not output.exists():
        return
    if not (output / FILE).is_file():
        raise DataError(f"output: {output} exists and is no packed store; give another path")
    if not config.overwrite:
        raise DataError(f"output: {output} exists; set overwrite to true or give another path")
