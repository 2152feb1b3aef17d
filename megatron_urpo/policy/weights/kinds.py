"""Which kind of checkpoint lies at a path."""

from pathlib import Path

from megatron_urpo.policy.hf.dimensions import ModelShape
from megatron_urpo.policy.weights.shards import ShardWeights, is_shards
from megatron_urpo.policy.weights.source import HuggingFaceWeights, Weights
from megatron_urpo.policy.weights.torch_dist import METADATA, TorchDistWeights

WEIGHTS = "weights"
"""The folder of Megatron's weights in a converted checkpoint."""
_TORCH_DIST = (WEIGHTS, "policy", ".")
"""Where a torch_dist checkpoint is: converted, of a run, or by itself."""


def torch_dist_folder(folder: Path) -> Path | None:
    return next((folder / name for name in _TORCH_DIST if (folder / name / METADATA).is_file()), None)


def is_megatron(folder: Path) -> bool:
    """Whether the weights at `folder` are Megatron's and no Hugging Face model's."""
    return torch_dist_folder(folder) is not None or is_shards(folder / WEIGHTS)


def open_weights(folder: Path, shape: ModelShape) -> Weights:
    """Raises ConfigError where there are no weights, or none that can be read."""
    dist = torch_dist_folder(folder)
    if dist is not None:
        return TorchDistWeights(dist, shape)
    if is_shards(folder / WEIGHTS):
        return ShardWeights(folder / WEIGHTS, shape)
    return HuggingFaceWeights(folder, shape)
