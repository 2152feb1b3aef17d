"""Metrics to Weights & Biases, where the config asks for it; the package is imported only then."""

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_urpo.config import Config, ConfigError


class WandbLog:
    """Follows `logging.wandb`: `off` does nothing, `offline` writes under the run folder, `online` uploads.

    Raises ConfigError where the package is asked for and absent.
    """

    def __init__(self, config: Config) -> None:
        self._run: Any = None
        if config.logging.wandb == "off":
            return
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            raise ConfigError(
                f"logging.wandb: {config.logging.wandb}, but the package wandb is not installed;"
                " run `pip install 'megatron-urpo[wandb]'` or set logging.wandb to off"
            ) from None
        self._run = wandb.init(
            project=config.logging.wandb_project,
            name=config.run_dir.name,
            id=_run_id(config.run_dir),
            resume="allow",
            mode=config.logging.wandb,
            dir=str(config.run_dir),
            config=config.model_dump(mode="json"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is written."""
        if self._run is not None:
            self._run.finish()


def _run_id(run_dir: Path) -> str:
    """Kept in the run folder, so that a resumed run goes on in the same curve."""
    file = run_dir / "wandb_id"
    if not file.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex)
    return file.read_text().strip()
