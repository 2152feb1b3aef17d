"""A run folder as it is found: finished, still going, killed, or damaged. Nothing here writes to it.

A report is read when something went wrong, so a line that cannot be read is left out and told, never an error.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_urpo.config import ConfigError


class ReportError(ConfigError):
    """The folder that was named holds no run, or the page cannot be written."""


@dataclass
class RunFiles:
    """What stands in a run folder. `notices` says in words what was left out."""

    path: Path
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, float | None]]
    transcripts: dict[int, Path]
    notices: list[str] = field(default_factory=list)

    def setting(self, *keys: str) -> Any:
        """A value of config.yaml, None where the file or the key is missing."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(path: Path) -> RunFiles:
    """Raises ReportError where `path` is no run folder."""
    if not path.exists():
        raise ReportError(f"{path}: there is no such folder; name the run_dir of a run")
    if not path.is_dir():
        raise ReportError(f"{path}: is a file; name the folder of a run, the one with metrics.jsonl")
    transcripts = {}
    for file in (path / "transcripts").glob("step_*.jsonl"):
        number = file.stem.removeprefix("step_")
        if number.isdecimal():
            transcripts[int(number)] = file
    if not transcripts and not (path / "metrics.jsonl").is_file():
        raise ReportError(f"{path}: is no run folder: it has neither metrics.jsonl nor transcripts/step_*.jsonl")
    notices: list[str] = []
    metrics = read_metrics(path / "metrics.jsonl", notices)
    config_text = _text(path / "config.yaml", notices)
    environment_text = _text(path / "environment.json", notices)
    return RunFiles(
        path=path,
        config_text=config_text,
        config=_mapping(yaml.safe_load, config_text, "config.yaml", notices),
        environment=_mapping(_strict_json, environment_text, "environment.json", notices),
        metrics=metrics,
        transcripts=dict(sorted(transcripts.items())),
        notices=notices,
    )


def read_metrics(path: Path, notices: list[str]) -> list[dict[str, float | None]]:
    """Lines by step, `step` among their values; None where a value was not finite. Of two lines of a step the later."""
    lines: dict[int, dict[str, float | None]] = {}
    if not path.is_file():
        notices.append("metrics.jsonl is missing, so there are no curves.")
        return []
    num_odd = 0
    for row in json_rows(path, notices):
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            num_odd += 1
            continue
        values = {name: _number(value) for name, value in row.items() if value is None or _is_number(value)}
        lines[step] = {**values, "step": step}
    if num_odd:
        notices.append(f"metrics.jsonl: {num_odd} line(s) without a step are left out.")
    return [lines[step] for step in sorted(lines)]


def json_rows(path: Path, notices: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one line in memory at a time; what cannot be read becomes one notice."""
    damaged: list[int] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    notices.append(f"{path.name}: the last line was cut off in the middle of writing and is left out.")
                    break
                row = parse_object(line)
                if row is None:
                    damaged.append(number)
                else:
                    yield row
    except OSError as error:
        notices.append(f"{path.name}: cannot be read ({error.strerror}); what it holds is missing here.")
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        notices.append(f"{path.name}: {len(damaged)} line(s) that are no JSON object are left out: {shown}.")


def parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _text(path: Path, notices: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        notices.append(f"{path.name} is missing.")
        return ""


def _mapping(parse: Callable[[str], Any], text: str, name: str, notices: list[str]) -> dict[str, Any]:
    try:
        content = parse(text) if text else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        content = None
    if isinstance(content, dict):
        return content
    notices.append(f"{name} cannot be read as a mapping.")
    return {}


def _strict_json(text: str) -> Any:
    """Without NaN and infinities, which the page's JSON has no word for."""

    def refuse(word: str) -> float:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
