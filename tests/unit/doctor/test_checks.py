"""Every check is seen well and is made to fail by facts alone."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.doctor import examine
from megatron_urpo.doctor.facts import Facts, GpuFacts, Meeting, read_pins
from megatron_urpo.doctor.meeting import meet

GIB = 2**30
GOOD = Facts(
    python=(3, 12, 1),
    pins={"torch": "2.13.0", "click": "8.5.1"},
    installed={"torch": "2.13.0+cpu", "click": "8.5.1"},
    required=("torch", "click"),
    driver=True,
    gpus=(GpuFacts("NVIDIA H100", 80 * GIB, 79 * GIB), GpuFacts("NVIDIA H100", 80 * GIB, 79 * GIB)),
    cuda="13.0",
    nccl="2.28.9",
    transformer_engine="2.15.0",
    shared_memory=64 * GIB,
    open_files=(65536, 65536),
    free_ports=16,
    folder=Path("runs"),
    folder_writable=True,
    folder_free=900 * GIB,
    user_namespaces=True,
    servers={"sglang": "0.5.21", "vllm": None},
    meeting=Meeting(2, {"node1": 0.01, "node2": 0.02}, 2),
)


def test_a_node_as_it_should_be() -> None:
    assert {check.name: check.status for check in examine(GOOD, require_gpu=True) if check.status != "ok"} == {}


@pytest.mark.parametrize(
    ("name", "change", "status", "says"),
    [
        ("python", {"python": (3, 10, 9)}, "fail", "3.11"),
        ("packages", {"installed": {"torch": "2.13.0"}}, "fail", "missing: click"),
        ("packages", {"installed": {"torch": "2.9.0+cu128", "click": "8.5.1"}}, "warn", "2.9.0+cu128 (tested: 2.13.0)"),
        ("packages", {"pins": {}}, "none", "no constraints/"),
        ("gpus", {"gpus": ()}, "fail", "CUDA_VISIBLE_DEVICES"),
        ("gpus", {"gpus": (), "driver": False}, "warn", "--require-gpu"),
        ("cuda", {"cuda": None}, "fail", "CUDA build"),
        ("cuda", {"cuda": None, "driver": False}, "none", "no driver"),
        ("gpu memory", {"gpus": (GpuFacts("x", 80 * GIB, 60 * GIB),)}, "warn", "60.0 of 80.0 GiB"),
        ("nccl", {"nccl": None}, "fail", "no NCCL"),
        ("transformer engine", {"transformer_engine": None}, "warn", "`gpu` extra"),
        ("servers", {"servers": {"sglang": None, "vllm": None}}, "warn", "embedded engine alone"),
        ("servers", {"servers": {"sglang": "0.5.18", "vllm": None}}, "fail", "0.5.19"),
        ("shared memory", {"shared_memory": 64 * 2**20}, "fail", "--shm-size"),
        ("shared memory", {"shared_memory": 2 * GIB}, "warn", "2.00 GiB"),
        ("open files", {"open_files": (256, 4096)}, "fail", "ulimit -n 4096"),
        ("open files", {"open_files": (1024, 524288)}, "warn", "ulimit -n 65536"),
        ("free ports", {"free_ports": 3}, "fail", "ip_local_port_range"),
        ("disk", {"folder_writable": False}, "fail", "cannot be written"),
        ("disk", {"folder_free": GIB // 2}, "fail", "make room"),
        ("disk", {"folder_free": 20 * GIB}, "warn", "20 GiB free"),
        ("shared folder", {"meeting": Meeting(4, {"node1": 0.0}, 2)}, "fail", "2 of 4 tasks"),
        ("shared folder", {"meeting": None}, "none", "srun"),
        ("clocks", {"meeting": Meeting(2, {"node1": 0.0, "node2": 7.5}, 2)}, "warn", "node2 is 7.50 s ahead of node1"),
        ("user namespaces", {"user_namespaces": False}, "warn", "max_user_namespaces"),
    ],
)  # fmt: skip
def test_what_each_check_finds(name: str, change: dict[str, Any], status: str, says: str) -> None:
    (check,) = [check for check in examine(replace(GOOD, **change)) if check.name == name]
    assert check.status == status
    assert says in f"{check.found} {check.remedy}"
    assert check.remedy or status == "none", "what is not well has a remedy"


def test_every_check_can_find_something() -> None:
    (cases,) = [mark.args[1] for mark in test_what_each_check_finds.pytestmark]
    assert {check.name for check in examine(GOOD)} == {case[0] for case in cases}


def test_a_gpu_that_is_required() -> None:
    checks = examine(replace(GOOD, gpus=(), driver=False), require_gpu=True)
    assert [check.name for check in checks if check.status == "fail"] == ["gpus"]


def test_pins_are_read(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("# tested\nPyYAML==6.0.3\ntyping_extensions==4.16.0\n")
    assert read_pins(tmp_path / "pins.txt") == {"pyyaml": "6.0.3", "typing-extensions": "4.16.0"}
    assert read_pins(tmp_path / "none.txt") == {}


def test_tasks_meet_in_a_folder_and_leave_nothing(tmp_path: Path) -> None:
    found: dict[str, Meeting | None] = {}

    def task(rank: str) -> None:
        found[rank] = meet(tmp_path, {"SLURM_PROCID": rank, "SLURM_NTASKS": "2"}, wait_seconds=30)

    threads = [threading.Thread(target=task, args=(rank,)) for rank in "01"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for meeting in found.values():
        assert meeting is not None
        assert (meeting.num_seen, meeting.num_tasks) == (2, 2)
        assert all(abs(offset) < 5 for offset in meeting.offsets.values())
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_meets_nobody_says_so(tmp_path: Path) -> None:
    meeting = meet(tmp_path, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, wait_seconds=0.2)
    assert meeting is not None
    assert meeting.num_seen == 1


def test_one_process_meets_nobody(tmp_path: Path) -> None:
    assert meet(tmp_path, {}) is None


def test_the_command_on_this_machine(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json", "--folder", str(tmp_path / "runs")])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == int(any(check["status"] == "fail" for check in checks.values()))
    assert checks["python"]["status"] == "ok"
    assert checks["packages"]["status"] in ("ok", "warn")
    assert str(tmp_path) in checks["disk"]["found"]
