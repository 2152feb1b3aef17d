"""Environments of peers, made once: peers/NAME.txt becomes .cache/benchmarks/NAME, apart from the project's own."""

import subprocess
import venv
from pathlib import Path

PEERS = Path(__file__).parent
CACHE = PEERS.parent.parent.parent / ".cache" / "benchmarks"


def python_of(name: str) -> Path:
    """Its interpreter. Makes the environment where it is missing or was made from other requirements."""
    requirements, folder = PEERS / f"{name}.txt", CACHE / name
    python, mark = folder / "bin" / "python", folder / "requirements.txt"
    if not mark.is_file() or mark.read_text() != requirements.read_text():
        print(f"Preparing {folder}; this takes a few minutes the first time", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        mark.write_text(requirements.read_text())
    return python
