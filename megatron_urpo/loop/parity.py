"""The gate between engine and trainer: both compute the log-probabilities of the same tokens, and have to agree."""

from collections.abc import Mapping
from importlib.metadata import version

from megatron_urpo.config import Config
from megatron_urpo.health import TrainingStopped


def check_mismatch(config: Config, metrics: Mapping[str, float], engine: str) -> None:
    """Raises TrainingStopped where a step's `mismatch/kl` is above the limit. `engine` describes the engine."""
    mismatch = metrics.get("mismatch/kl", 0.0)
    if mismatch > config.mismatch.max_kl:
        raise TrainingStopped(
            f"engine and trainer disagree about the probabilities of the same tokens: mismatch/kl {mismatch:.3g}, at"
            f" most {metrics['mismatch/max']:.3g} nats at one token, is above mismatch.max_kl"
            f" {config.mismatch.max_kl:g}. {both_sides(config, engine)}"
        )


def check_server(config: Config, metrics: Mapping[str, float], server: str) -> None:
    """The same for a few tokens of one server, right after it was updated."""
    if metrics["mismatch/kl"] > config.mismatch.max_kl:
        raise TrainingStopped(
            f"{server} does not compute with the weights that it was sent: mismatch/kl {metrics['mismatch/kl']:.3g}"
            f" over a short answer is above mismatch.max_kl {config.mismatch.max_kl:g}."
            f" {both_sides(config, config.rollout.engine)}"
        )


def both_sides(config: Config, engine: str) -> str:
    """What could make the two differ, each side's in one sentence, and the way out."""
    fp8 = f", fp8 {config.fp8.format} {config.fp8.recipe}" if config.fp8.format != "none" else ""
    temperature = f"temperature {config.rollout.temperature:g}"
    sync = "" if config.rollout.engine == "embedded" else f" Weights came by {config.weight_sync.transport}."
    return (
        f"Trainer: megatron-core {version('megatron-core')}, torch {version('torch')}, {config.model.dtype}{fp8},"
        f" {temperature}. Engine: {engine}.{sync} Compare these; then raise the limit, or correct for the difference"
        " with loss.rollout_correction"
    )
