"""After every update the engine gets the policy's weights, under the number of the step that made them."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_urpo.protocols import PushAgain, Ranks, WeightReceiver, WeightSource
from megatron_urpo.weight_sync.servers import ServerWeights

if TYPE_CHECKING:
    import torch


def push_weights(source: WeightSource, receiver: WeightReceiver | None, version: int, ranks: Ranks) -> dict[str, float]:
    """Collective: every rank calls it, `receiver` is None on all but rank 0.

    Returns `time/weight_sync`, and on rank 0 what `ServerWeights` measured, with `weight_sync/retries`: how often it
    began anew because a server had died under way. That has an end: each time one is lost, none comes back more often
    than it may be restarted, and the receiver raises EngineError when none is left. Any other error of the receiver is
    raised here, and reaches the other ranks.
    """
    start = time.perf_counter()
    retries = 0
    while not _push_once(source, receiver, version, ranks):
        retries += 1
    metrics = {"time/weight_sync": time.perf_counter() - start}
    if isinstance(receiver, ServerWeights):
        metrics |= {**receiver.metrics(), "weight_sync/retries": float(retries)}
    return metrics


def _push_once(source: WeightSource, receiver: WeightReceiver | None, version: int, ranks: Ranks) -> bool:
    """Whether the engine has them; the same on every rank."""
    weights = source.export()
    error: Exception | None = None
    try:
        if receiver is not None:
            receiver.update_weights(weights, version)
    except Exception as raised:  # raised again below, in step with the other ranks
        error = raised
    finally:
        # Ranks without a receiver, and one whose receiver gave up, still take part in the collectives to the end.
        _exhaust(weights)

    def outcome() -> bool:
        if error is not None and not isinstance(error, PushAgain):
            raise error
        return error is None

    return ranks.from_rank0(outcome)


def _exhaust(weights: "Iterator[tuple[str, torch.Tensor]]") -> None:
    for _ in weights:
        pass
