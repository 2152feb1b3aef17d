"""Constraints for an environment on top of a base image that brings its own torch, such as NVIDIA's.

    python3 scripts/image/keep_base.py constraints/cpu.txt > constraints-of-this-image.txt

What is compiled against the base's torch, CUDA or numpy must stay as the base has it: a torch from a package index in
its place would break Transformer Engine and apex, often only at the first call. So these packages are held at the
versions that are there, whatever the tested list says; every other pin of the list holds. Run it with the base's own
interpreter, before anything is installed. Standard library only.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

KEPT = re.compile(
    r"torch|torch-tensorrt|torchvision|torchaudio|torchao|(pytorch-)?triton|transformer-engine.*|apex|flash-attn.*|"
    r"nvidia-.*|numpy"
)


def normalised(name: str) -> str:
    """A package's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(installed: Mapping[str, str], tested: Iterable[str]) -> list[str]:
    """Lines of constraints: kept packages at their installed versions, then the tested pins of all others.

    installed: version by name, as found in the base. tested: lines `name==version` of the tested list; comments and
    empty lines are left out. Raises ValueError where the base has no torch, or a tested line is no exact pin.
    """
    kept = {normalised(name): version for name, version in installed.items() if KEPT.fullmatch(normalised(name))}
    if "torch" not in kept:
        raise ValueError("this interpreter has no torch to keep; run it with the base image's own python3")
    lines = [f"{name}=={version}" for name, version in sorted(kept.items())]
    for line in (line.strip() for line in tested):
        if not line or line.startswith("#"):
            continue
        pin = re.fullmatch(r"([\w.-]+)==\S+", line)
        if pin is None:
            raise ValueError(f"{line!r} is no exact pin; write it as name==version")
        if normalised(pin[1]) not in kept:
            lines.append(line)
    return lines


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python3 scripts/image/keep_base.py constraints/cpu.txt")
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions() if found.metadata["Name"]}
    try:
        print("\n".join(constraints(installed, Path(sys.argv[1]).read_text().splitlines())))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
