"""One HTML file with everything in it: style, script and data; nothing is loaded, nothing in the data can run.

Models write the text that this page shows, so it is treated as hostile: it travels as JSON with every character
outside plain ASCII and every `<`, `>` and `&` escaped, the script puts it on the page as text alone, and the
Content-Security-Policy allows no script and no style but the two of this package, by their hashes.
"""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_urpo.reporting.jsonl import replace_bytes
from megatron_urpo.reporting.report import curves
from megatron_urpo.reporting.report.findings import findings
from megatron_urpo.reporting.report.flags import FLAGS
from megatron_urpo.reporting.report.read import ReportError, RunFiles, read_run
from megatron_urpo.reporting.report.sample import sample_groups

SCRIPTS = (
    "dom.js",
    "chart.js",
    "scatter.js",
    "overview.js",
    "time.js",
    "detail.js",
    "filters.js",
    "groups.js",
    "main.js",
)
STYLES = ("style.css", "groups.css")
MAX_CONFIG_CHARACTERS = 200_000


def write_report(run: Path, output: Path | None = None) -> Path:
    """Writes `run`/report.html, or `output`, and returns where. Raises ReportError: no run, or no place to write."""
    files = read_run(run)
    target = output or run / "report.html"
    content = render(page_data(files)).encode("ascii")
    try:
        replace_bytes(target, content)
    except OSError as error:
        raise ReportError(f"{target}: cannot be written ({error.strerror}); name another file with --output") from None
    return target


def page_data(run: RunFiles) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    sample = sample_groups(run)
    lines = run.metrics
    newest = run.path / "metrics.jsonl"
    written = newest.stat().st_mtime if newest.is_file() else None
    return {
        "run": {
            "name": run.path.resolve().name,
            "last_step": max([int(lines[-1]["step"] or 0) if lines else 0, *run.transcripts]),
            "num_steps": steps if isinstance(steps := run.setting("num_steps"), int) else None,
            "last_line_at": _time(written),
            "made_at": _time(datetime.now(UTC).timestamp()),
            "config": run.config_text[:MAX_CONFIG_CHARACTERS],
            "environment": run.environment,
            "model": str(run.setting("model", "path") or "unknown"),
            "phase_starts": phase_starts(run),
            "transcripts_off": run.setting("logging", "transcripts") is False,
        },
        "findings": findings(lines),
        "training": curves.curves(lines),
        "evaluation": curves.evaluations(lines),
        "verdicts": curves.totals(lines, "referee/verdict/"),
        "drops": curves.totals(lines, "groups/dropped/"),
        "num_groups": sum(line.get("groups/total") or 0.0 for line in lines),
        "time": curves.timeline(lines),
        "sample": sample,
        "flags": {name: {"weight": weight, "meaning": meaning} for name, (weight, meaning) in FLAGS.items()},
        "notices": run.notices,
    }


def phase_starts(run: RunFiles) -> list[dict[str, Any]]:
    """Where a later phase of the curriculum begins, and the tasks that are new in it."""
    phases = run.setting("data", "curriculum")
    starts = []
    for before, phase in pairwise(phases if isinstance(phases, list) else []):
        match before, phase:
            case {"until": int() as step}, {"mix": dict() as mix}:
                known = before.get("mix")
                joined = [str(task) for task in mix if not (isinstance(known, dict) and known.get(task))]
                starts.append({"step": step + 1, "label": " + ".join(joined) + " joins" if joined else "new mixture"})
    return starts


def render(data: dict[str, Any]) -> str:
    """The page's text, pure ASCII."""
    style = "\n".join(_part(name) for name in STYLES)
    script = "'use strict';\n(() => {\n" + "\n".join(_part(name) for name in SCRIPTS) + "\n})();\n"
    parts = {"policy": content_policy(style, script), "style": style, "script": script, "data": embedded_json(data)}
    # One pass over the template: what is filled in is never searched for places.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def content_policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def embedded_json(data: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: it holds no `<`, so nothing in it ends the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="ascii").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _time(timestamp: float | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")
