"""Converting a model both ways, against a copy of the same bytes and mbridge: time, processor time, peak memory.

The models have the shapes of Qwen2.5-0.5B and Qwen2.5-1.5B with random bfloat16 weights. A round is: copy, there, copy,
back, mbridge, then what no round can do without: the imports, and one sha256 of the bytes. Every command is a process
of its own, starts from files that were read into the page cache just before and ends with the bytes on disk (`cp -r` is
followed by `sync` of what it wrote); what it wrote goes before the next. Peak memory is the largest resident size that
the kernel saw, pages of mapped files included.

mbridge (`peers/mbridge_convert.py`, in an environment of its own, made once) goes both ways in one process; the seconds
of its imports are added to each. Its way there ends with the module in memory, and writes nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from peers.environments import PEERS, python_of
from rich.progress import track

ROOT = Path(__file__).parent.parent.parent
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
VOCABULARY = 151_936
IMPORTS = "import megatron_urpo.user_errors, megatron_urpo.conversion.convert"
SHA256 = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"
LIMIT_MIB = 1536


@dataclass(frozen=True)
class Taken:
    """`processor`: seconds of all threads; NaN where a process did other things, too."""

    seconds: float
    processor: float
    peak_mib: float


def run(command: list[str], output: int = subprocess.DEVNULL) -> tuple[Taken, str]:
    """One process, with the time and the memory that the kernel counted for it, and what it printed to a pipe."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    text = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")
    return Taken(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), text


def copied(source: Path, target: Path) -> Taken:
    script = 'cp -r "$1" "$2" && sync $(find "$2")'
    return run(["bash", "-c", script, "copy", str(source), str(target)])[0]


def converted(tool: str, source: Path, target: Path) -> Taken:
    return run([sys.executable, f"tools/{tool}.py", str(source), str(target)])[0]


def by_mbridge(source: Path, target: Path) -> dict[str, Taken]:
    command = [str(python_of("mbridge")), str(PEERS / "mbridge_convert.py"), str(source), str(target)]
    taken, text = run(command, subprocess.PIPE)
    parts = json.loads(text.splitlines()[-1])
    return {
        f"mbridge {way}": Taken(parts["imports"] + parts[way], float("nan"), taken.peak_mib)
        for way in ("there", "back")
    }


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
    warm(hf)
    found |= by_mbridge(hf, other)
    shutil.rmtree(other)
    found["imports"] = run([sys.executable, "-c", IMPORTS])[0]
    found["sha256"] = run([sys.executable, "-c", SHA256, str(hf / "model.safetensors")])[0]
    return found


def measure(size: str, rounds: int, place: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        # The kernel counts what a process was before it became another program: this one must stay small.
        run([sys.executable, __file__, "--write", str(folder / "hf"), "--sizes", size])
        num_bytes = sum(path.stat().st_size for path in (folder / "hf").iterdir())
        found = [one_round(folder) for _ in track(range(rounds), f"{size}, {num_bytes / 1e9:.2f} GB")]
    print(f"\n{size}, {num_bytes / 1e9:.2f} GB: median of {rounds} (lowest - highest)\n")
    print("| | seconds | times the copy | processor seconds | peak MiB |\n|---|---:|---:|---:|---:|")
    for step in found[0]:
        of = {what: [getattr(taken[step], what) for taken in found] for what in ("seconds", "processor", "peak_mib")}
        ratios = [
            taken[step].seconds / copy.seconds for taken in found if (copy := taken.get(f"copy {step.split()[-1]}"))
        ]
        cells = [spread(of["seconds"]), spread(ratios), spread(of["processor"]), f"{max(of['peak_mib']):.0f}"]
        print(f"| {step} | {' | '.join(cells)} |")
    for way in ("there", "back"):
        ratios = [taken[f"mbridge {way}"].seconds / taken[way].seconds for taken in found]
        peaks = [taken[f"mbridge {way}"].peak_mib / taken[way].peak_mib for taken in found]
        print(f"mbridge {way}: {spread(ratios)} times our seconds, {spread(peaks)} times our peak memory")
        if max(taken[way].peak_mib for taken in found) > LIMIT_MIB:
            print(f"{way}: peak memory above the {LIMIT_MIB} MiB that the tools promise")


def spread(values: list[float]) -> str:
    if not values or values[0] != values[0]:
        return ""
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
    python_of("mbridge")
    for size in arguments.sizes:
        measure(size, arguments.rounds, arguments.place)
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
