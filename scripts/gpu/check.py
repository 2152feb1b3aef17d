"""Runs the parts of gpu_check.sh, each in a process of its own, and writes what they found; see there.

A part that fails is named, the others still run, and the exit status is 1.
"""

import argparse
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PARTS = ("logprobs", "update", "parity", "broadcast", "loop")
NEEDED = (
    "torch", "megatron.core", "transformers", "tokenizers", "safetensors", "pydantic", "yaml", "click", "rich", "numpy",
    "pyarrow", "math_verify", "psutil",
)  # fmt: skip
OPTIONAL = ("triton", "transformer_engine", "liger_kernel")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "measurements" / "gpu")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU does in seconds; measures nothing")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        found = importlib.import_module(f"part_{arguments.part}").measure(arguments.tiny)
        arguments.output.write_text(json.dumps(found))
        return 0
    if missing := [name for name in NEEDED if not present(name)]:
        print(f"error: {sys.executable} lacks {', '.join(missing)}; install them, or name another Python with PYTHON=")
        return 1
    parts = arguments.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        print(f"error: --parts: {', '.join(unknown)} is not known; choose of {', '.join(PARTS)}")
        return 1
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(f"No CUDA for torch {torch.__version__} of {sys.executable}: nothing was measured.")
            return 0
    result = {"command": shlex.join(["bash", "scripts/gpu_check.sh", *sys.argv[1:]]), **surroundings(arguments.device)}
    result["parts"] = {name: run_part(name, arguments.device, arguments.tiny) for name in parts}
    write(arguments.output, result)
    failed = [name for name, part in result["parts"].items() if part["failures"]]
    print(f"\nWritten: {arguments.output}/results.json and results.md" + (f"; failed: {failed}" if failed else ""))
    return 1 if failed else 0


def present(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def surroundings(device: str) -> dict[str, Any]:
    """Commit, hardware and versions."""
    import torch

    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    on_gpu = device == "cuda"
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "megatron.core", "transformers")}
    for name in OPTIONAL:
        versions[name] = getattr(importlib.import_module(name), "__version__", "present") if present(name) else "absent"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": (commit or "unknown") + (" with changes" if changed else ""),
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU {platform.machine()}, to try the scripts out",
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
        **versions,
    }


def run_part(name: str, device: str, tiny: bool) -> dict[str, Any]:
    """What the part found: {title, notes, rows, failures}; a part that dies has its last words as a failure."""
    print(f"\n## {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--part", name, "--output", str(output), *(["--tiny"] if tiny else [])]
        environment = dict(os.environ)
        if device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
            last = done.stderr.strip().splitlines()[-1:]
            return {"title": name, "notes": [], "rows": [], "failures": [f"exit status {done.returncode}: {last}"]}
        part: dict[str, Any] = json.loads(output.read_text())
    print("\n".join(markdown(part)), flush=True)
    return part


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    head = [f"- {name}: {value}" for name, value in result.items() if name != "parts"]
    head[0] = f"- command: `{result['command']}`"
    tables = [line for part in result["parts"].values() for line in ("", f"## {part['title']}", "", *markdown(part))]
    (folder / "results.md").write_text("\n".join(["# Results of gpu_check.sh", "", *head, *tables]) + "\n")


def markdown(part: dict[str, Any]) -> list[str]:
    """The rows as a table, then notes and failures."""
    columns = list(dict.fromkeys(name for row in part["rows"] for name in row))
    lines = []
    if columns:
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in part["rows"]]
    lines += ["", *part["notes"]] if part["notes"] else []
    return lines + [f"FAILED: {failure}" for failure in part["failures"]]


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
