"""Jobs that take seconds, all queued at once: doctor, conversion, packing, and how often a job is started again."""

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.slurm import SCRIPTS, Slurm
from tests.support.models import make_model
from tests.support.packing import write_tokenizer

# Stands for the interpreter of the ranks, URPO_PYTHON: ends every start with $CODE. With $PROGRESS each start has a
# newer checkpoint than the one before.
ENDING = """#!/bin/sh
[ -z "$PROGRESS" ] || mkdir -p "$URPO_RUN_DIR/checkpoints/step_00000$SLURM_RESTART_COUNT"
echo "Error: as it was told" >&2
exit "$CODE"
"""
ENDINGS = {
    "saves": {"CODE": "85", "URPO_MAX_RESTARTS": "1"},
    "fails": {"CODE": "1", "URPO_MAX_RESTARTS": "5"},
    "fails later": {"CODE": "1", "PROGRESS": "yes", "URPO_MAX_RESTARTS": "1"},
}


@dataclass(frozen=True)
class Ended:
    """`log`: what the job said; `folder`: its own."""

    exit_code: str
    restarts: int
    log: str
    folder: Path

    @property
    def last_line(self) -> str:
        return self.log.splitlines()[-1]


@pytest.fixture(scope="module")
def ended(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    root = tmp_path_factory.mktemp("small")
    numbers = {}

    def queue(name: str, script: str, *words: str, **exported: str) -> None:
        folder = root / name.replace(" ", "_")
        folder.mkdir()
        values = {"URPO_RUN_DIR": str(folder), "URPO_PYTHON": sys.executable, **exported}
        environment = ",".join(["ALL", *(f"{key}={text}" for key, text in values.items())])
        numbers[name] = slurm.ask(
            "sbatch", "--parsable", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0",
            f"--output={folder}/log", f"--export={environment}", str(SCRIPTS / script), *words,
        )  # fmt: skip

    (root / "ending.sh").write_text(ENDING)
    (root / "ending.sh").chmod(0o755)
    for name, values in ENDINGS.items():
        queue(name, "train_colocated.sbatch", "config.yaml", URPO_PYTHON=str(root / "ending.sh"), **values)
    for name, place in {"doctor": root / "runs", "doctor apart": slurm.folder / "private" / "runs"}.items():
        numbers[name] = _queue_doctor(slurm, root / name.replace(" ", "_"), place)
    make_model(root / "model", "qwen2")
    queue("convert", "convert.sbatch", "hf_to_megatron", str(root / "model"), str(root / "convert" / "checkpoint"))
    write_tokenizer(root / "tokenizer")
    (root / "rows.jsonl").write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    recipe = {"output": str(root / "pack" / "store"), "tokenizer": str(root / "tokenizer"), "processes": 1,
              "sources": [{"dataset": "prompt_answer", "path": str(root / "rows.jsonl")}]}  # fmt: skip
    (root / "pack.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    queue("pack", "pack.sbatch", str(root / "pack.yaml"))
    found = {}
    for name, number in numbers.items():
        job, folder = slurm.wait(number), root / name.replace(" ", "_")
        found[name] = Ended(job["ExitCode"], int(job["Restarts"]), (folder / "log").read_text(), folder)
    return found


def _queue_doctor(slurm: Slurm, folder: Path, place: Path) -> str:
    """As docs/clusters.md says, inside a job: the machine that the tests run on is no node."""
    folder.mkdir()
    words = [sys.executable, "-W", "ignore", "-m", "megatron_urpo.cli", "doctor", "--json", "--folder", str(place)]
    return slurm.ask(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={folder}/log",
        f"--wrap=srun --output={folder}/task_%t.json --error={folder}/errors {shlex.join(words)}",
    )  # fmt: skip


def checks_of(doctor: Ended) -> list[dict[str, dict[str, str]]]:
    """Of each task that told something, its checks by name."""
    told = [path.read_text() for path in sorted(doctor.folder.glob("task_*.json"))]
    return [{check["name"]: check for check in json.loads(text)} for text in told if text]


def test_doctor_compares_two_nodes(ended: dict[str, Ended]) -> None:
    """The first task says what all have seen; two hosts of one machine have one clock."""
    (checks,) = checks_of(ended["doctor"])
    assert ended["doctor"].exit_code == "0:0", checks
    assert (checks["shared folder"]["status"], checks["clocks"]["status"]) == ("ok", "ok")
    met, place = checks["shared folder"]["found"].split(" in ")
    assert met == "2 of 2 tasks met"
    assert re.fullmatch(r"urpo([12]) is 0\.\d\d s ahead of urpo(?!\1)[12]", checks["clocks"]["found"])
    assert list(Path(place).iterdir()) == []


def test_doctor_finds_a_folder_that_is_each_nodes_own(ended: dict[str, Ended]) -> None:
    """Every task says it: it knows its host alone."""
    tasks = checks_of(ended["doctor apart"])
    assert ended["doctor apart"].exit_code == "1:0"
    assert len(tasks) == 2
    for checks in tasks:
        assert checks["shared folder"]["status"] == "fail"
        assert checks["shared folder"]["found"].startswith("1 of 2 tasks met in ")
        assert checks["clocks"]["status"] == "none"


@pytest.mark.parametrize(("name", "made"), [("convert", "checkpoint/config.json"), ("pack", "store/manifest.json")])
def test_a_conversion_and_a_packing_are_done(ended: dict[str, Ended], name: str, made: str) -> None:
    job = ended[name]
    assert job.exit_code == "0:0", job.log
    assert job.last_line.endswith(" is done")
    assert (job.folder / made).is_file()


def test_a_job_that_only_saves_ends_at_its_limit(ended: dict[str, Ended]) -> None:
    job = ended["saves"]
    assert (job.restarts, job.exit_code) == (1, "85:0")
    assert "\nqueued again: restart 1 of at most 1\n" in job.log
    assert "\nnot queued again: it was 1 times, as launch.max_restarts allows\n" in job.log


def test_a_job_that_fails_twice_at_one_checkpoint_ends(ended: dict[str, Ended]) -> None:
    job = ended["fails"]
    assert (job.restarts, job.exit_code) == (1, "1:0")
    assert "\nnot queued again: it failed twice at the start\n" in job.log
    assert job.last_line == "Error: as it was told"


def test_a_job_that_came_further_before_it_failed_is_started_again(ended: dict[str, Ended]) -> None:
    """Until its limit, which counts failures too."""
    job = ended["fails later"]
    assert (job.restarts, job.exit_code) == (1, "1:0")
    assert "failed twice" not in job.log
    assert "\nnot queued again: it was 1 times, as launch.max_restarts allows\n" in job.log
