"""How a run is started on a cluster, and how soon a rank that died ends the others."""

from typing import Annotated

from pydantic import Field, PositiveInt

from megatron_urpo.config.section import Section


class LaunchConfig(Section):
    """`abort_after` counts at every run of several ranks; the rest is for `megatron-urpo sbatch`."""

    abort_after: float = Field(
        60.0, ge=2, description="seconds in which all ranks end after one died, raised an error or stopped answering"
    )
    join_seconds: float = Field(900.0, gt=0, description="for all ranks to start and find each other")
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")] = Field(
        "24:00:00", description="limit of a job, [DAYS-]HH:MM:SS"
    )
    warn_seconds: PositiveInt = Field(300, description="before that limit: the run saves and the job is queued again")
    max_restarts: int = Field(20, ge=0, description="of a job, whatever the reason")
    gpus_per_node: int = Field(8, ge=0, description="0: train on CPUs")
    ranks_per_node: PositiveInt | None = Field(
        None, description="default: one a GPU; must be given where there is none"
    )
    cpus_per_rank: PositiveInt = Field(8, description="CPU cores of each rank, and of each GPU of a server's node")
    server_nodes: int = Field(
        0, ge=0, description="nodes of their own for servers, in the same job; 0: servers run where rank 0 does"
    )
    container: Annotated[str, Field(pattern=r"^((pyxis|apptainer):\S+)?$")] = Field(
        "", description="pyxis:IMAGE or apptainer:IMAGE; empty: the environment that submits"
    )
