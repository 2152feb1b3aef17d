import subprocess
import sys
from pathlib import Path

import pytest

from megatron_urpo.reporting.wandb_log import WandbLog
from tests.support.rollout import make_config

OFF = make_config()


def test_off_never_imports_the_package() -> None:
    code = (
        "import sys; from megatron_urpo.reporting.wandb_log import WandbLog; from tests.support.rollout import"
        " make_config; log = WandbLog(make_config()); log.log(0, {'x': 1.0}); log.close();"
        " assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_a_missing_package_is_explained(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('blocked')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from megatron_urpo.reporting.wandb_log import WandbLog;"
        " from tests.support.rollout import make_config; WandbLog(make_config(logging={'wandb': 'offline'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode != 0
    assert "logging.wandb: offline, but the package wandb is not installed" in done.stderr


def test_offline_writes_under_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    config = make_config(logging={"wandb": "offline"}).model_copy(update={"run_dir": tmp_path / "run"})
    log = WandbLog(config)
    log.log(1, {"reward/mean/reasoning": 0.5})
    log.close()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "run" / "wandb_id").read_text()
