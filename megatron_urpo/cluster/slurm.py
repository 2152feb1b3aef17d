"""What SLURM is asked from a login node, by its own programs. Where they are not installed nothing is refused."""

import getpass
import shutil
import subprocess
from pathlib import Path

from megatron_urpo.config import ConfigError

FORGOTTEN = "Invalid job id specified"
"""What squeue says of a job that ended long ago."""


def check_partition(name: str) -> None:
    """Raises ConfigError for a partition that SLURM does not have."""
    if shutil.which("sinfo") is None:
        return
    done = _run("sinfo", "--noheader", "--format=%R")
    if done.returncode:
        raise ConfigError(f"--partition: SLURM does not answer ({_words(done)}); try again later")
    known = sorted(set(done.stdout.split()))
    if name not in known:
        raise ConfigError(f"--partition: {name!r} does not exist here; use one of {', '.join(known)}")


def job_state(number: str) -> str | None:
    """RUNNING, PENDING and the like; None of a job that has ended, and where no squeue is. Raises ConfigError."""
    if shutil.which("squeue") is None:
        return None
    done = _run("squeue", "--noheader", "--format=%T", f"--jobs={number}")
    if done.returncode and FORGOTTEN not in done.stderr:
        raise ConfigError(f"run_dir: SLURM does not answer about job {number} ({_words(done)}); try again later")
    return done.stdout.split()[0] if done.stdout.split() else None


def submit(text: str, run_dir: Path, account: str | None) -> str:
    """Number of the job. Writes it into the run folder. Raises ConfigError with SLURM's own words."""
    if shutil.which("sbatch") is None:
        raise ConfigError("--submit: no program sbatch here; call it on a login node of the cluster, or use --dry-run")
    folder = run_dir / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "train.sbatch"
    file.write_text(text)
    done = _run("sbatch", "--parsable", str(file))
    if "Invalid account" in done.stderr:
        given = "is missing" if account is None else f"{account!r}"
        raise ConfigError(f"--account: {given}, and SLURM refuses the job ({_words(done)}); {_accounts()}")
    if done.returncode:
        raise ConfigError(f"--submit: SLURM refuses {file}: {_words(done)}")
    return done.stdout.strip().split(";")[0]


def _accounts() -> str:
    user = f"user={getpass.getuser()}"
    done = _run("sacctmgr", "--noheader", "--parsable2", "show", "associations", user, "format=account")
    known = sorted(set(done.stdout.split())) if done.returncode == 0 else []
    return f"use one of {', '.join(known)}" if known else "ask who runs the cluster for yours"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split())
