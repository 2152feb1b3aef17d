"""Every job script is accepted by SLURM's own parser and by shellcheck; what a node lacks is one line."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import LOCAL, SCRIPTS, Slurm
from tests.support.miniature import ROOT


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_would_start_it(slurm: Slurm, script: Path) -> None:
    assert "to start at" in slurm.run("sbatch", "--test-only", str(script)).stderr


def test_slurms_parser_finds_a_wrong_directive(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "wrong.sbatch").write_text("#!/bin/bash\n#SBATCH --nodez=2\ntrue\n")
    assert slurm.run("sbatch", "--test-only", str(tmp_path / "wrong.sbatch")).returncode != 0


def test_shellcheck_has_nothing_to_say(slurm: Slurm) -> None:
    files = [*SCRIPTS.glob("*.sbatch"), *SCRIPTS.glob("*.sh"), LOCAL]
    done = subprocess.run(["shellcheck", "-x", *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("URPO_CONTAINER", "apptainer:{private}/image.sif", "error: launch.container: no image {private}/image.sif on"),
        (
            "URPO_RUN_DIR",
            "{private}/run",
            "error: run_dir: {private}/run is not the folder that the first node sees on",
        ),
    ],
    ids=["image", "run_dir"],
)
def test_what_a_node_lacks_is_one_line(slurm: Slurm, tmp_path: Path, variable: str, value: str, line: str) -> None:
    """FOLDER/private is another disk on every node; the first has the image."""
    private = str(slurm.folder / "private")
    exported = {"URPO_RUN_DIR": str(tmp_path / "run"), variable: value.format(private=private)}
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\ntouch {private}/image.sif\nsource {SCRIPTS}/train_colocated.sbatch\n")
    number = slurm.ask(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/log",
        "--export=" + ",".join(["ALL", *(f"{name}={text}" for name, text in exported.items())]), str(script),
    )  # fmt: skip
    job = slurm.wait(number)
    log = (tmp_path / "log").read_text()
    assert log.splitlines()[-1].startswith(line.format(private=private)), log
    assert " on urpo2: " in log
    assert (job["ExitCode"], job["Restarts"]) == ("2:0", "0")
