"""Converting a model both ways, against a copy of the same bytes: time as a ratio to cp and sync, peak memory.

The models have the shapes of Qwen2.5-0.5B and Qwen2.5-1.5B with random bfloat16 weights. A round is: copy, there, copy,
back. Every command is a process of its own, starts from files that were read into the page cache just before and ends
with the bytes on disk (`cp -r` is followed by `sync` of what it wrote); what it wrote goes before the next. Peak memory
is the largest resident size that the kernel saw, pages of mapped files included. `imports` is a process that only
imports the conversion: the seconds that no size changes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.progress import track

ROOT = Path(__file__).parent.parent.parent
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
VOCABULARY = 151_936
STEPS = ("copy there", "there", "copy back", "back", "imports")
IMPORTS = "import megatron_urpo.conversion.convert"


@dataclass(frozen=True)
class Taken:
    seconds: float
    peak_mib: float


def run(command: list[str]) -> Taken:
    """One process, with the time and the memory that the kernel counted for it."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Taken(seconds, usage.ru_maxrss / 1024)


def copied(source: Path, target: Path) -> Taken:
    script = 'cp -r "$1" "$2" && sync $(find "$2")'
    return run(["bash", "-c", script, "copy", str(source), str(target)])


def converted(tool: str, source: Path, target: Path) -> Taken:
    return run([sys.executable, f"tools/{tool}.py", str(source), str(target)])


def warm(folder: Path) -> None:
    """Reads the files, so that each step finds them in the page cache; then nothing waits to be written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass
                os.fsync(file.fileno())


def write_model(folder: Path, size: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[size], num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def one_round(folder: Path) -> dict[str, Taken]:
    hf, megatron, other = folder / "hf", folder / "megatron", folder / "other"
    found: dict[str, Taken] = {}
    warm(hf)
    found["copy there"] = copied(hf, other)
    shutil.rmtree(other)
    warm(hf)
    found["there"] = converted("convert_hf_to_megatron", hf, megatron)
    warm(megatron)
    found["copy back"] = copied(megatron, other)
    shutil.rmtree(other)
    warm(megatron)
    found["back"] = converted("convert_megatron_to_hf", megatron, other)
    shutil.rmtree(other)
    shutil.rmtree(megatron)
    found["imports"] = run([sys.executable, "-c", IMPORTS])
    return found


def measure(size: str, rounds: int, place: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        # The kernel counts what a process was before it became another program: this one must stay small.
        run([sys.executable, __file__, "--write", str(folder / "hf"), "--sizes", size])
        num_bytes = sum(path.stat().st_size for path in (folder / "hf").iterdir())
        found = [one_round(folder) for _ in track(range(rounds), f"{size}, {num_bytes / 1e9:.2f} GB")]
    print(f"\n{size}: {num_bytes / 1e9:.2f} GB, median of {rounds} (lowest - highest)")
    for step in STEPS:
        times, peaks = ([getattr(taken[step], what) for taken in found] for what in ("seconds", "peak_mib"))
        line = f"{step:<11} {spread(times)} s, peak {median(peaks):.0f} MiB"
        if step in ("there", "back"):
            ratios = [taken[step].seconds / taken[f"copy {step}"].seconds for taken in found]
            line += f", {spread(ratios)} times the copy, peak {median(peaks) * 2**20 / num_bytes:.2f} of the bytes"
        print(line)


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--place", type=Path, help="Folder on the disk to measure; needs three times the model's bytes."
    )
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_model(arguments.write, arguments.sizes[0])
        return
    for size in arguments.sizes:
        measure(size, arguments.rounds, arguments.place)
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
