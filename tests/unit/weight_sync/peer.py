"""A process that joins groups and receives broadcasts by the same steps as SGLang, told to by lines of JSON.

It answers `ok`, with a digest of what came, or `error`. To be run as a program.
"""

import hashlib
import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

MINUTES = timedelta(minutes=30)  # SGLang's, which nobody wants to wait for


def join(group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> dist.ProcessGroup:
    store, _, _ = next(rendezvous(f"tcp://{address}:{port}", rank, world_size, timeout=MINUTES))
    joined, _ = distributed_c10d._new_process_group_helper(
        world_size,
        rank,
        [],
        dist.Backend(backend),
        PrefixStore(group, store),
        group_name=distributed_c10d.GroupName(group),
        timeout=MINUTES,
    )
    assert isinstance(joined, dist.ProcessGroup)
    distributed_c10d._world.pg_group_ranks[joined] = {member: member for member in range(world_size)}
    return joined


def main() -> None:
    groups: dict[str, dist.ProcessGroup] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        order, arguments = json.loads(line)
        try:
            digest = ""
            if order == "join":
                groups[arguments["group"]] = join(**arguments)
            elif order == "receive":
                buffer = torch.empty(arguments["num_bytes"], dtype=torch.uint8)
                dist.broadcast(buffer, src=0, group=groups[arguments["group"]])
                digest = hashlib.sha256(buffer.numpy().tobytes()).hexdigest()
            else:
                dist.destroy_process_group(groups.pop(arguments["group"]))
            print(f"ok {digest}", flush=True)
        except (RuntimeError, KeyError) as error:
            print(f"error {' '.join(str(error).split())[:200]}", flush=True)


if __name__ == "__main__":
    main()
