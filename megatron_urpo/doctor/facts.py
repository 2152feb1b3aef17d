"""What there is on this node: read once, judged elsewhere (`checks.py`)."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""The checkout, where the package is installed from one."""
SERVER_ENVIRONMENTS = {"sglang": ".venv-sglang", "vllm": ".venv-vllm"}
PORTS_WANTED = 16
UNSHARE_SECONDS = 10


@dataclass(frozen=True)
class GpuFacts:
    name: str
    memory: int
    free: int


@dataclass(frozen=True)
class Meeting:
    """What the first rank of an srun found in the shared folder: see `meeting.py`."""

    num_tasks: int
    offsets: dict[str, float]
    """Host -> its clock minus that of the file system, in seconds; hosts whose files were seen."""
    num_seen: int


@dataclass(frozen=True)
class Facts:
    python: tuple[int, int, int]
    pins: dict[str, str]
    """Package -> tested version; empty where the package is installed without its checkout."""
    installed: dict[str, str]
    required: tuple[str, ...]
    """Packages that this one cannot do without."""
    driver: bool
    gpus: tuple[GpuFacts, ...]
    cuda: str | None
    nccl: str | None
    transformer_engine: str | None
    shared_memory: int
    open_files: tuple[int, int]
    free_ports: int
    folder: Path
    folder_writable: bool
    folder_free: int
    user_namespaces: bool
    servers: dict[str, str | None]
    meeting: Meeting | None


def gather_facts(folder: Path, meeting: Meeting | None = None) -> Facts:
    """Of this node and process; `folder` is where runs are to be written."""
    import torch

    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    on_gpu = torch.cuda.is_available()
    return Facts(
        python=sys.version_info[:3],
        pins=read_pins(ROOT / "constraints" / "cpu.txt"),
        installed={item.name.lower().replace("_", "-"): item.version for item in metadata.distributions()},
        required=_required(),
        driver=Path("/proc/driver/nvidia/version").exists(),
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())) if on_gpu else (),
        cuda=torch.version.cuda,
        nccl=".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,  # type: ignore[no-untyped-call]
        transformer_engine=_version("transformer-engine"),
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        free_ports=_free_ports(PORTS_WANTED),
        folder=folder,
        folder_writable=place.is_dir() and os.access(place, os.W_OK),
        folder_free=shutil.disk_usage(place).free,
        user_namespaces=_user_namespaces(),
        servers={name: _server(name, ROOT / place) for name, place in SERVER_ENVIRONMENTS.items()},
        meeting=meeting,
    )


def read_pins(path: Path) -> dict[str, str]:
    """Package -> version of a constraints file; empty where there is none."""
    if not path.is_file():
        return {}
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def _required() -> tuple[str, ...]:
    try:
        lines = metadata.requires("megatron-urpo") or []
    except metadata.PackageNotFoundError:
        return ()
    names = [re.match(r"[\w.-]+", line) for line in lines if "extra ==" not in line]
    return tuple(name[0].lower().replace("_", "-") for name in names if name)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> GpuFacts:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return GpuFacts(torch.cuda.get_device_name(index), total, free)


def _free_ports(count: int) -> int:
    """How many of `count` sockets could listen on loopback at once."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(socket.create_server(("127.0.0.1", 0)))
    except OSError:
        pass  # the number says it
    for opened in sockets:
        opened.close()
    return len(sockets)


def _user_namespaces() -> bool:
    """Whether a process can have a user namespace of its own, tried with a real one."""
    program = shutil.which("unshare")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "--user", "true"], capture_output=True, timeout=UNSHARE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _server(name: str, environment: Path) -> str | None:
    """Version of an engine in the trainer's environment or in one of its own in the checkout."""
    for folder in sorted(environment.glob(f"lib/python*/site-packages/{name}*.dist-info")):
        found = re.match(rf"{name}(?:_cpu)?-(\d+(?:\.\d+)*)", folder.name)
        if found:
            return found[1]
    return _version(name)
