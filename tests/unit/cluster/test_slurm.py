"""What SLURM with accounting says of an account: scripted, since the local one has none (`tests/cluster`)."""

from pathlib import Path

import pytest

from megatron_urpo.cluster.slurm import submit
from megatron_urpo.config import ConfigError

REFUSED = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"


@pytest.mark.parametrize(
    ("account", "known", "line"),
    [
        ("mine", "echo lab; echo physics; echo lab", r"^--account: 'mine', and .*\); use one of lab, physics$"),
        (
            None,
            "exit 1",
            r"^--account: is missing, and SLURM refuses the job .*\); ask who runs the cluster for yours$",
        ),
    ],
)
def test_an_account_that_slurm_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: str | None, known: str, line: str
) -> None:
    for name, script in {"sbatch": f"echo '{REFUSED}' >&2; exit 1", "sacctmgr": known}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match=line) as caught:
        submit("#!/bin/bash\n", tmp_path / "run", account)
    assert "Invalid account or account/partition combination specified" in str(caught.value)
    assert "\n" not in str(caught.value)
