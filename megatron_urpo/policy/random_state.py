"""The random states of a rank: torch's on the CPU and on its GPU, and megatron-core's tensor-parallel ones.

Nothing of a run draws from them after the weights are made: dropout is 0, sampling and shuffling have counter-based
streams of their own. They are saved for what may come, so that a resumed run goes on with the numbers that the unbroken
one would have drawn. As safetensors: no pickle.
"""

from pathlib import Path

import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from safetensors.torch import load_file, save
from torch import Tensor

_TRACKED = "tracker/"


def copy_random_state() -> bytes:
    """As the content of a file."""
    states: dict[str, Tensor] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    for name, state in get_cuda_rng_tracker().get_states().items():
        states[_TRACKED + name] = state.cpu()
    content: bytes = save({name: state.clone() for name, state in states.items()})
    return content


def load_random_state(path: Path) -> None:
    """Goes on from what `copy_random_state` saw on the same kind of device."""
    states = load_file(path)
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    tracked = {name.removeprefix(_TRACKED): state for name, state in states.items() if name.startswith(_TRACKED)}
    get_cuda_rng_tracker().set_states(tracked)
