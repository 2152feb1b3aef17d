"""What a user points at: a Hugging Face folder, a converted checkpoint, or a checkpoint of a run."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.hf.shape import read_shape
from megatron_urpo.policy.weights.kinds import is_megatron, open_weights
from megatron_urpo.policy.weights.source import Weights


@dataclass(frozen=True)
class Checkpoint:
    """`model` is the folder with its config.json and tokenizer, `weights` what it weighs."""

    folder: Path
    model: Path
    shape: ModelShape
    weights: Weights
    megatron: bool


def locate(folder: Path, model: Path | None = None) -> Checkpoint:
    """Opens a checkpoint and checks that it is whole; reads indexes and headers only.

    A run's checkpoint has no config.json of its own: it is that of `model`, or of model.path in the run's config.yaml.
    Raises ConfigError.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give a Hugging Face model folder or a checkpoint")
    if model is None:
        model = folder if (folder / "config.json").is_file() else _model_of_run(folder)
    try:
        shape = read_shape(model)
        weights = open_weights(folder, shape)
        weights.check()
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("model.path: ")) from None  # no config is in play
    return Checkpoint(folder, model, shape, weights, is_megatron(folder))


def _model_of_run(folder: Path) -> Path:
    """`folder` is RUN/checkpoints/step_N; RUN/config.yaml names the model that the run began with."""
    config = folder.absolute().parent.parent / "config.yaml"
    if not is_megatron(folder):
        raise ConfigError(f"{folder} has no config.json; give a Hugging Face model folder or a checkpoint")
    try:
        path = Path(yaml.safe_load(config.read_text())["model"]["path"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has no config.json and {config} does not name its model ({' '.join(str(error).split())}); name"
            " the Hugging Face folder that the run began with by --model"
        ) from None
    if not (path / "config.json").is_file():
        raise ConfigError(f"{config} names the model {path}, which is not there; name its folder by --model")
    return path
