"""The policy's weights on their way to the engine: into its own process, or to the servers of a fleet, and checked."""

from megatron_urpo.loop.parity import check_server
from megatron_urpo.loop.rank0 import Rank0
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.update import measure_mismatch
from megatron_urpo.protocols import WeightReceiver
from megatron_urpo.weight_sync.push import push_weights
from megatron_urpo.weight_sync.servers import ServerWeights


def release_memory(rank0: Rank0, parallel: Parallel) -> None:
    """Collective. With `rollout.release_memory` servers are without memory from here to the next `send_weights`."""
    if rank0.config.rollout.release_memory:
        parallel.from_rank0(_release, rank0.receiver)


def _release(receiver: WeightReceiver | None) -> None:
    assert isinstance(receiver, ServerWeights), "check_config lets only servers release memory"
    receiver.release()


def send_weights(policy: Policy, rank0: Rank0, version: int) -> dict[str, float]:
    """Collective. `push_weights`, and every `weight_sync.verify` versions a look at what each server makes of them.

    Raises TrainingStopped where a server and the trainer disagree.
    """
    config, parallel = rank0.config, policy.parallel
    metrics = push_weights(policy, rank0.receiver, version, parallel)
    if config.weight_sync.verify and version % config.weight_sync.verify == 0:
        for name, sample in parallel.from_rank0(rank0.probe).items():
            found = measure_mismatch(policy, [sample], config.loss)
            check_server(config, found, name)
    return metrics
