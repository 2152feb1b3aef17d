"""After every update the engine gets the policy's weights, under the number of the step that made them."""

import time

from megatron_urpo.protocols import WeightReceiver, WeightSource


def push_weights(source: WeightSource, receiver: WeightReceiver | None, version: int) -> dict[str, float]:
    """Collective: every rank calls it, `receiver` is None on all but rank 0. Returns the metric `time/weight_sync`.

    All or nothing: where the receiver raises, its old weights and version stay.
    """
    start = time.perf_counter()
    weights = source.export()
    try:
        if receiver is not None:
            receiver.update_weights(weights, version)
    finally:
        # Ranks without a receiver, and one whose receiver gave up, still take part in the collectives to the end.
        for _ in weights:
            pass
    return {"time/weight_sync": time.perf_counter() - start}
