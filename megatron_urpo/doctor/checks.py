"""Each check is a function of the facts: what was found, how bad it is, and what to do about it.

`ok`; `warn`, a run works but slower, untested or with less; `fail`, a run would break; `none`, nothing to check here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_urpo.doctor.facts import PORTS_WANTED, Facts

Status = Literal["ok", "warn", "fail", "none"]
MIB, GIB = 2**20, 2**30
OLDEST_SERVERS = {"sglang": (0, 5, 19), "vllm": (0, 27)}
MOST_SKEW = 1.0
"""Seconds by which hosts may differ: logs of several nodes are read side by side, and caches compare file times."""


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(facts: Facts, require_gpu: bool = False) -> list[Check]:
    """All checks. `require_gpu`: a node without a GPU is no place for a run, instead of a small one."""
    return [check_gpus(facts, require_gpu), *(check(facts) for check in CHECKS)]


def check_python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        return Check("python", "fail", version, "install Python 3.11 or newer")
    return Check("python", "ok", version)


def check_packages(facts: Facts) -> Check:
    """Those that the package needs: a missing one breaks it, another version than the tested one may."""
    missing = [name for name in facts.required if name not in facts.installed]
    if missing:
        remedy = "bash scripts/test.sh sets the environment up; or pip install --constraint constraints/cpu.txt -e ."
        return Check("packages", "fail", f"missing: {', '.join(missing)}", remedy)
    if not facts.pins:
        return Check("packages", "none", "no constraints/ beside the package, so no tested versions to compare with")
    others = [
        f"{name} {facts.installed[name]} (tested: {facts.pins[name]})"
        for name in facts.required
        if name in facts.pins and facts.installed[name].split("+")[0] != facts.pins[name]
    ]
    if others:
        remedy = "pip install --constraint constraints/cpu.txt -e ."
        return Check("packages", "warn", "other versions than tested: " + ", ".join(others), remedy)
    return Check("packages", "ok", f"{len(facts.required)} packages as tested")


def check_gpus(facts: Facts, require_gpu: bool) -> Check:
    if facts.gpus:
        names = ", ".join(sorted({gpu.name for gpu in facts.gpus}))
        return Check("gpus", "ok", f"{len(facts.gpus)} x {names}")
    if facts.driver:
        found = "a driver, but no GPU that this process sees"
        return Check(
            "gpus", "fail", found, "ask the scheduler for GPUs (--gpus-per-node) and look at CUDA_VISIBLE_DEVICES"
        )
    if require_gpu:
        return Check("gpus", "fail", "none", "run this on a GPU node, e.g. srun --gpus-per-node 8 megatron-urpo doctor")
    return Check(
        "gpus", "warn", "none", "fine for trying things out and on a login node; --require-gpu makes it an error"
    )


def check_cuda(facts: Facts) -> Check:
    if facts.cuda is None:
        if facts.driver:
            return Check("cuda", "fail", "a build of torch without CUDA", "install the CUDA build of torch")
        return Check("cuda", "none", "a build of torch without CUDA, as there is no driver")
    return Check("cuda", "ok", f"torch is built for CUDA {facts.cuda}")


def check_gpu_memory(facts: Facts) -> Check:
    """Another process's memory on a GPU is missing for the run."""
    if not facts.gpus:
        return Check("gpu memory", "none", "no GPU")
    least = min(facts.gpus, key=lambda gpu: gpu.free / gpu.memory)
    found = f"at least {least.free / GIB:.1f} of {least.memory / GIB:.1f} GiB free on each"
    if least.free < 0.95 * least.memory:
        return Check(
            "gpu memory", "warn", found, "end what else runs there (nvidia-smi lists it), or ask for whole nodes"
        )
    return Check("gpu memory", "ok", found)


def check_transformer_engine(facts: Facts) -> Check:
    if not facts.gpus:
        return Check("transformer engine", "none", "no GPU; the torch layers are used")
    if facts.transformer_engine is None:
        remedy = "install the `gpu` extra or use NVIDIA's PyTorch image; without it the slower torch layers are used"
        return Check("transformer engine", "warn", "not installed", remedy)
    return Check("transformer engine", "ok", facts.transformer_engine)


def check_nccl(facts: Facts) -> Check:
    if not facts.gpus:
        return Check("nccl", "none", "no GPU; ranks talk over gloo")
    if facts.nccl is None:
        return Check("nccl", "fail", "torch has no NCCL", "install the CUDA build of torch for Linux")
    return Check("nccl", "ok", facts.nccl)


def check_shared_memory(facts: Facts) -> Check:
    found = f"/dev/shm has {facts.shared_memory / GIB:.2f} GiB"
    remedy = "start the container with more: docker --shm-size 16g, or --ipc host; apptainer and enroot use the host's"
    if facts.shared_memory < 128 * MIB:
        return Check("shared memory", "fail", found, remedy)
    if facts.shared_memory < 4 * GIB:
        return Check("shared memory", "warn", found, remedy)
    return Check("shared memory", "ok", found)


def check_open_files(facts: Facts) -> Check:
    """A rollout keeps a connection for each request under way, and every rank a few for each other rank."""
    soft, hard = facts.open_files
    found = f"{soft:,} at once, may be raised to {hard:,}"
    if soft < 1024:
        return Check("open files", "fail", found, f"ulimit -n {min(hard, 65536)} before the start")
    if soft < 8192:
        return Check("open files", "warn", found, f"ulimit -n {min(hard, 65536)} before the start")
    return Check("open files", "ok", found)


def check_ports(facts: Facts) -> Check:
    found = f"{facts.free_ports} of {PORTS_WANTED} that were asked for at once"
    if facts.free_ports < PORTS_WANTED:
        remedy = "widen net.ipv4.ip_local_port_range, or end what keeps ports open (ss -ltn lists it)"
        return Check("free ports", "fail", found, remedy)
    return Check("free ports", "ok", found)


def check_disk(facts: Facts) -> Check:
    found = f"{facts.folder}: {facts.folder_free / GIB:.0f} GiB free"
    if not facts.folder_writable:
        return Check("disk", "fail", f"{facts.folder} cannot be written", "give --folder where runs are to be written")
    if facts.folder_free < GIB:
        return Check("disk", "fail", found, "make room, or give another --folder")
    if facts.folder_free < 50 * GIB:
        return Check("disk", "warn", found, "a checkpoint of a 7B model is about 100 GB; make room, or write elsewhere")
    return Check("disk", "ok", found)


def check_shared_folder(facts: Facts) -> Check:
    if facts.meeting is None:
        return Check("shared folder", "none", "one process; srun several to compare nodes")
    seen, count = facts.meeting.num_seen, facts.meeting.num_tasks
    found = f"{seen} of {count} tasks met in {facts.folder}"
    if seen < count:
        remedy = "give a folder that all nodes share (Lustre, NFS …); /tmp and local disks are each node's own"
        return Check("shared folder", "fail", found, remedy)
    return Check("shared folder", "ok", found)


def check_clocks(facts: Facts) -> Check:
    if facts.meeting is None or len(facts.meeting.offsets) < 2:
        return Check("clocks", "none", "one host; srun on several to compare")
    offsets = facts.meeting.offsets
    first, last = min(offsets, key=offsets.__getitem__), max(offsets, key=offsets.__getitem__)
    skew = offsets[last] - offsets[first]
    found = f"{last} is {skew:.2f} s ahead of {first}"
    if skew > MOST_SKEW:
        return Check("clocks", "warn", found, "have the nodes' time service (chrony) looked at")
    return Check("clocks", "ok", found)


def check_user_namespaces(facts: Facts) -> Check:
    if not facts.user_namespaces:
        remedy = (
            "sysctl user.max_user_namespaces=15000 (and kernel.unprivileged_userns_clone=1 on Debian); untrusted code"
            " cannot be shut in without them"
        )
        return Check("user namespaces", "warn", "not allowed", remedy)
    return Check("user namespaces", "ok", "allowed")


def check_servers(facts: Facts) -> Check:
    there = {name: version for name, version in facts.servers.items() if version is not None}
    if not there:
        remedy = "pip install sglang in an environment of its own and name its python in rollout.sglang.command"
        return Check("servers", "warn", "no SGLang, no vLLM: the embedded engine alone", remedy)
    found = ", ".join(f"{name} {version}" for name, version in there.items())
    old = [name for name, version in there.items() if _numbers(version) < OLDEST_SERVERS[name]]
    if old:
        oldest = ", ".join(f"{name} {'.'.join(map(str, OLDEST_SERVERS[name]))}" for name in old)
        return Check("servers", "fail", found, f"too old to tell each token's version; install at least {oldest}")
    return Check("servers", "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


CHECKS: tuple[Callable[[Facts], Check], ...] = (
    check_cuda, check_gpu_memory, check_nccl, check_transformer_engine, check_python, check_packages, check_servers,
    check_shared_memory, check_open_files, check_ports, check_disk, check_shared_folder, check_clocks,
    check_user_namespaces,
)  # fmt: skip
