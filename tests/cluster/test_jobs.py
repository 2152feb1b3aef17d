"""Jobs of the project's own scripts on two nodes: they finish, and interrupted they end with the same numbers.

All jobs of one module are queued at once: most of the time goes into imports.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.cluster.slurm import SCRIPTS, Slurm, changes, log_of, metrics, until
from tests.support.miniature import Miniature

STEPS = 4
# Rates every answer 0.5, but first waits while the file $1 is there. The evaluation of step 0, when $2
# has no line yet, is let pass: a run that is interrupted there has nothing to save.
HOLD = """
trap '' USR1 TERM
while [ -e "$1" ] && [ -s "$2" ]; do touch "$1.waiting"; sleep 0.1; done
rm -f "$1.waiting"
sed 's/.*/{"quality": 0.5}/'
"""


@dataclass(frozen=True)
class Jobs:
    folder: Path
    unbroken: str
    interrupted: str
    wrong: str
    array: str


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "hold.sh").write_text(HOLD)
    (folder / "held_out.jsonl").write_text(
        next(line for line in miniature.train.read_text().splitlines(True) if json.loads(line)["task"] == "instruction")
    )
    (folder / "hold").touch()
    steps = {"num_steps": STEPS, "evaluation.data": f"[{folder / 'held_out.jsonl'}]", "evaluation.every": 1}

    def scorer(hold: str, run: str) -> dict[str, str]:
        words = ["bash", folder / "hold.sh", folder / hold, folder / run / "metrics.jsonl"]
        return {"evaluation.scorer": json.dumps([str(word) for word in words])}

    interrupted = slurm.submit(changes(miniature, folder / "interrupted", **steps, **scorer("hold", "interrupted")), 2)
    wrong = changes(
        miniature,
        folder / "wrong",
        **{"data.train": "[nowhere.jsonl]", "parallel.tensor": 1, "launch.ranks_per_node": 1},
    )
    return Jobs(
        folder,
        interrupted=interrupted,
        unbroken=slurm.submit(
            changes(miniature, folder / "unbroken", **steps, **scorer("none", "unbroken")), 2, "--name", "left-alone"
        ),
        wrong=slurm.submit(wrong, 1),
        array=_submit_array(slurm, miniature, folder),
    )


def _submit_array(slurm: Slurm, miniature: Miniature, folder: Path) -> str:
    """By hand, as the header of the script shows it."""
    (folder / "array").mkdir()
    words = changes(
        miniature, folder / "array" / "run_%a", num_steps=1, seed="%a", **{"parallel.tensor": 1, "checkpoint.every": 0}
    )
    return slurm.ask(
        "sbatch", "--parsable", "--array=0-1", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gres=none",
        "--gpus-per-node=0", f"--output={folder}/array/%a.log",
        f"--export=ALL,URPO_RUN_DIR={folder}/array", str(SCRIPTS / "train_colocated.sbatch"),
        "examples/miniature/config.yaml", *words,
    )  # fmt: skip


def restarts(slurm: Slurm, number: str) -> int:
    return int(slurm.job(number)["Restarts"])


def rank_process(run_dir: Path, rank: int) -> psutil.Process:
    """The process that trains, not the shell around it."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if f"run_dir={run_dir}" in words and environment.get("RANK") == str(rank) and "bash" not in words[0]:
            return process
    raise AssertionError(f"no process of rank {rank} in {run_dir}")


def test_saved_preempted_and_killed_it_ends_with_the_numbers_of_an_unbroken_run(slurm: Slurm, jobs: Jobs) -> None:
    """Each time while rank 0 is held by the program that rates answers, so that no clock decides where it happens."""
    run, number, hold = jobs.folder / "interrupted", jobs.interrupted, jobs.folder / "hold"

    def interrupt(start: int, strike: Callable[[], object]) -> None:
        until(hold.with_suffix(".waiting").exists, f"start {start}", seconds=600)
        strike()
        hold.unlink()
        until(lambda: f"job {number} start {start + 1} on " in log_of(run, number), f"start {start + 1}", seconds=600)
        hold.with_suffix(".waiting").unlink(missing_ok=True)  # of a program that was killed
        hold.touch()  # long before the new start has imported anything

    interrupt(0, lambda: slurm.ask("scancel", "--signal=USR1", number))
    assert "exit code 85" in log_of(run, number)
    interrupt(1, lambda: slurm.ask("scontrol", "requeue", number))
    interrupt(2, lambda: os.kill(rank_process(run, 3).pid, signal.SIGKILL))
    assert restarts(slurm, number) == 3
    assert (run / "checkpoints" / "step_000002").is_dir()  # each interruption came a step later than the one before
    assert "\nError: rank 3 on urpo2 " in log_of(run, number)
    hold.unlink()
    assert slurm.wait(number)["ExitCode"] == "0:0", log_of(run, number)
    assert slurm.wait(jobs.unbroken)["ExitCode"] == "0:0", log_of(jobs.folder / "unbroken", jobs.unbroken)
    assert metrics(run) == metrics(jobs.folder / "unbroken")
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, jobs.folder / "unbroken"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_two_nodes_with_two_ranks_each_train_together(slurm: Slurm, jobs: Jobs) -> None:
    assert slurm.wait(jobs.unbroken)["ExitCode"] == "0:0"
    run = jobs.folder / "unbroken"
    assert len(metrics(run)) == STEPS + 1  # step 0 is the model before training
    exits = sorted((run / "jobs" / jobs.unbroken / "start_0").glob("rank_*.exit"))
    assert [path.read_text() for path in exits] == ["urpo1 0\n", "urpo1 0\n", "urpo2 0\n", "urpo2 0\n"]


def test_a_wrong_config_is_not_queued_again(slurm: Slurm, jobs: Jobs) -> None:
    job = slurm.wait(jobs.wrong)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    assert log_of(jobs.folder / "wrong", jobs.wrong).splitlines()[-1].startswith("error: data.train: nowhere.jsonl")


def test_an_array_shares_neither_ports_nor_folders(slurm: Slurm, jobs: Jobs) -> None:
    folder = jobs.folder / "array"
    places = []
    for task in (0, 1):
        assert slurm.wait(f"{jobs.array}_{task}")["ExitCode"] == "0:0", (folder / f"{task}.log").read_text()
        assert [line["step"] for line in metrics(folder / f"run_{task}")] == [0, 1]
        places.append((folder / f"{task}.log").read_text().splitlines()[0].split(" on ")[1].split(", "))
    assert places[0][1].split(":")[1] != places[1][1].split(":")[1]
    assert places[0][2] != places[1][2]
    assert metrics(folder / "run_0") != metrics(folder / "run_1")
