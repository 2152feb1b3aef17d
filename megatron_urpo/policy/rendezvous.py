"""How ranks find each other: by the variables of torchrun, which the job scripts set under srun, too.

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

import itertools
import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron_urpo.config.launch import LaunchConfig
from megatron_urpo.policy.watch import Watch
from megatron_urpo.protocols import RankLost

_joins = itertools.count()


def join_store(timeout: timedelta) -> dist.Store:  # type: ignore[name-defined]
    """The store that all ranks share. Raises RankLost where they are not all there in time."""
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
    except dist.DistError as error:
        raise _not_all(timeout.total_seconds(), error) from error
    # A second join of these processes finds no old keys.
    return dist.PrefixStore(f"run_{next(_joins)}", store)  # type: ignore[attr-defined]


def watch_ranks(rank: int, world_size: int, launch: LaunchConfig) -> Watch:
    """A watch with a connection of its own to the launcher's store. Raises RankLost where not all ranks come."""
    name = f"watch_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}_{next(_joins)}"
    timeout = timedelta(seconds=launch.join_seconds)
    try:
        client = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        store = dist.PrefixStore(name, client)  # type: ignore[attr-defined]
        return Watch(store, rank, world_size, launch.abort_after, timeout)
    except dist.DistError as error:
        raise _not_all(launch.join_seconds, error) from error


def _not_all(seconds: float, error: BaseException) -> RankLost:
    reason = " ".join(str(error).split("\n")[0].split())
    return RankLost(
        f"launch: the {os.environ.get('WORLD_SIZE')} ranks did not all find {os.environ.get('MASTER_ADDR')}:"
        f"{os.environ.get('MASTER_PORT')} in {seconds:g} seconds ({reason}); see the logs of the other ranks, or raise"
        " launch.join_seconds"
    )
