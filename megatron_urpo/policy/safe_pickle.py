"""Reads the pickles in a checkpoint with an allow-list, before megatron-core and torch read them without one.

torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle that it loads with `pickle.load`, and objects
that are not tensors with `torch.load(weights_only=False)`: a checkpoint from a stranger could run any program. Here
every pickle of a folder is first read by a reader that knows nothing but what checkpoints are made of. Goes when torch
reads both by such a list of its own (filesystem.py:930 and default_planner.py:387 of torch 2.13.0).

What Transformer Engine keeps in its `_extra_state` is its own pickle inside a tensor of bytes, which only it reads.
"""

import io
import pickle
from pathlib import Path

import torch

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.weights.torch_pickle import Index, TensorInfo, read_metadata


def check_pickles(folder: Path) -> None:
    """Raises ConfigError where a pickle of the `torch_dist` folder asks for anything else, or cannot be read."""
    file = folder / ".metadata"
    try:
        metadata = read_metadata(file)
        file = folder / "common.pt"
        torch.load(file, map_location="cpu", weights_only=True)
        for key, kind in metadata.state_dict_metadata.items():
            if not isinstance(kind, TensorInfo):
                place = metadata.storage_data[Index(key)]
                file = folder / place.relative_path
                _check_object(file, place.offset, place.length)
        for place in metadata.storage_data.values():
            file = folder / place.relative_path
            if Path(place.relative_path).name != place.relative_path:
                raise pickle.UnpicklingError("its index points out of the folder")
    except (pickle.UnpicklingError, OSError, ValueError, KeyError, AttributeError, TypeError, EOFError) as error:
        why = " ".join(str(error).split()).partition(" In PyTorch 2.6")[0]
        raise ConfigError(
            f"run_dir: {file} is not what a checkpoint is made of ({why[:300]}); nothing of it was loaded: use one that"
            " a run of yours has written"
        ) from None


def _check_object(file: Path, offset: int, length: int) -> None:
    with file.open("rb") as stream:
        stream.seek(offset)
        torch.load(io.BytesIO(stream.read(length)), map_location="cpu", weights_only=True)
