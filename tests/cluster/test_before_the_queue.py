"""What `megatron-urpo sbatch` asks SLURM and looks at before a job is queued."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from megatron_urpo.checkpoints.run_lock import NAME, STALE_SECONDS
from megatron_urpo.cli import main
from tests.cluster.slurm import CONFIG, ON_CPUS, Slurm, until
from tests.support.models import make_model


def queue(slurm: Slurm, run_dir: Path, partition: str, *options: str) -> Result:
    model = run_dir.parent / "model"
    if not model.exists():
        make_model(model, "qwen2")
    words = [f"{name}={value}" for name, value in {**ON_CPUS, "run_dir": run_dir, "model.path": model}.items()]
    arguments = ["sbatch", str(CONFIG), *words, "--nodes", "1", "--partition", partition, *options]
    return CliRunner().invoke(main, arguments, env={"SLURM_CONF": str(slurm.folder / "slurm.conf")})


@pytest.mark.parametrize("options", [[], ["--submit"]], ids=["printed", "queued"])
def test_a_partition_that_does_not_exist(slurm: Slurm, tmp_path: Path, options: list[str]) -> None:
    done = queue(slurm, tmp_path / "run", "nope", *options)
    assert done.exit_code == 2
    assert done.output == "error: --partition: 'nope' does not exist here; use one of all\n"
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_another_job_has(slurm: Slurm, tmp_path: Path) -> None:
    """While the job is there, and after it: then its lock is told, once it is old."""
    run = tmp_path / "run"
    run.mkdir()
    number = slurm.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600")
    lock = {"host": "urpo2", "pid": 4711, "pid_namespace": "pid:[1]", "started": 1.0, "job": number, "restart": 0}
    (run / NAME).write_text(json.dumps(lock))
    until(lambda: slurm.job(number)["JobState"] == "RUNNING", "the job")
    refused = queue(slurm, run, "all", "--submit")
    assert refused.exit_code == 2
    assert refused.output == (
        f"error: run_dir: {run} is in use by job {number} (RUNNING), last on urpo2; `scancel {number}`, or give another"
        " run_dir\n"
    )
    slurm.ask("scancel", number)
    slurm.wait(number)
    changed = (run / NAME).stat().st_mtime - STALE_SECONDS - 20
    os.utime(run / NAME, (changed, changed))
    printed = queue(slurm, run, "all")
    assert printed.exit_code == 0
    assert f"the job takes over {run / NAME} of process 4711 on urpo2, job {number}, which gave no" in printed.stderr
    assert printed.stdout.startswith("#!/bin/bash\n")
