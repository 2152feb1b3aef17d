"""The SLURM job of a run, written from the run's own config; `scripts/slurm/` does what it says.

A job file is a header and a call. Nothing of a user's text reaches the header but names and paths of plain characters;
in the call every word is quoted for the shell.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_urpo.checkpoints.run_lock import find_dead_lock
from megatron_urpo.cluster.slurm import check_partition, job_state
from megatron_urpo.config import Config, ConfigError
from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.planning import make_plan
from megatron_urpo.policy.hf.shape import check_layout, read_shape
from megatron_urpo.policy.parallel import check_world_size

ROOT = Path(__file__).parent.parent.parent
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+-]*")
PATH = re.compile(r"[A-Za-z0-9_./+=@,:-]+")


@dataclass(frozen=True)
class Request:
    """What the command line asks of SLURM; the rest is in the config's section `launch`."""

    nodes: int
    partition: str
    account: str | None = None
    qos: str | None = None
    name: str | None = None


def render_job(config: Config, path: Path, overrides: Sequence[str], request: Request) -> str:
    """The job file. Raises ConfigError for a name or a path that its header cannot hold."""
    launch = config.launch
    run_dir = config.run_dir.absolute()
    name = request.name or re.sub(r"[^A-Za-z0-9_.-]", "_", f"urpo-{run_dir.name}")
    for field, value in (
        ("--partition", request.partition), ("--account", request.account), ("--qos", request.qos), ("--name", name),
    ):  # fmt: skip
        if value is not None and not NAME.fullmatch(value):
            raise ConfigError(f"{field}: {value!r} is no name of SLURM's; use letters, digits and _ . , : + - alone")
    if not PATH.fullmatch(str(run_dir)):
        raise ConfigError(
            f"run_dir: {str(run_dir)!r} has characters that a job's header cannot hold; use letters, digits and"
            " _ . / + = @ , : - alone"
        )
    own = {"job-name": name, "partition": request.partition, "account": request.account, "qos": request.qos}
    ranks = ranks_per_node(config)
    common = {
        "time": launch.time, "signal": f"B:USR1@{launch.warn_seconds}", "requeue": "", "open-mode": "append",
        "output": f"{run_dir}/jobs/%j.log",
    }  # fmt: skip
    trainer = {**own, **_nodes(request.nodes, ranks, launch.gpus_per_node, launch.cpus_per_rank), **common}
    header = _directives(trainer)
    if launch.server_nodes:
        per_node = _servers(config).num_servers // launch.server_nodes
        cores = launch.cpus_per_rank * max(1, launch.gpus_per_node // per_node)
        placed = {key: own[key] for key in ("partition", "account", "qos")}
        nodes = _nodes(launch.server_nodes, per_node, launch.gpus_per_node, cores)
        header += ["#SBATCH hetjob", *_directives({**placed, **nodes})]
    script = "train_disaggregated" if launch.server_nodes else "train_colocated"
    variables = {
        "URPO_ROOT": str(ROOT),
        "URPO_RUN_DIR": str(run_dir),
        "URPO_CONTAINER": launch.container,
        "URPO_MAX_RESTARTS": str(launch.max_restarts),
        "URPO_ENGINE": config.rollout.engine,
        **({} if launch.container else {"URPO_PYTHON": sys.executable}),
    }
    words = [str(path.absolute()), *overrides]
    return "\n".join(
        [
            "#!/bin/bash",
            *header,
            f"cd -- {shlex.quote(str(Path.cwd()))} || exit 2",
            *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
            f"set -- {shlex.join(words)}",
            f"source {shlex.quote(str(ROOT / 'scripts' / 'slurm' / f'{script}.sbatch'))}",
            "",
        ]
    )


def check_job(config: Config, request: Request, gpu: str) -> str | None:
    """What the job will take over in its run folder, if anything.

    Raises ConfigError for what can be known before the queue: nodes, layout, memory, partition, the checkout, a run
    that has the folder.
    """
    if not (ROOT / "scripts" / "slurm" / "common.sh").is_file():
        raise ConfigError(f"megatron_urpo: {ROOT} has no scripts/slurm; install the checkout with `pip install -e`")
    if request.nodes < 1:
        raise ConfigError(f"--nodes: {request.nodes} is below 1; give the number of nodes that train")
    world_size = request.nodes * ranks_per_node(config)
    if config.launch.server_nodes:
        config = _with_addresses(config)
    if config.launch.gpus_per_node:
        problems = make_plan(config, gpu, world_size).problems
        if problems:
            raise ConfigError("\n".join(problems))
    else:
        check_layout(read_shape(config.model.path), config.parallel.tensor, config.parallel.pipeline)
        check_world_size(config.parallel, world_size)
    check_partition(request.partition)
    return find_dead_lock(config.run_dir, job_state)


def ranks_per_node(config: Config) -> int:
    launch = config.launch
    ranks = launch.ranks_per_node or launch.gpus_per_node
    if not ranks:
        raise ConfigError("launch.ranks_per_node: is missing with launch.gpus_per_node 0; give the ranks of a node")
    if launch.gpus_per_node and ranks > launch.gpus_per_node:
        raise ConfigError(
            f"launch.ranks_per_node: {ranks} is above launch.gpus_per_node {launch.gpus_per_node}; every rank has a GPU"
            " of its own, so lower it or leave it out"
        )
    return ranks


def _servers(config: Config) -> ServersConfig:
    """Of a run whose servers have nodes of their own."""
    engine, nodes = config.rollout.engine, config.launch.server_nodes
    if engine == "embedded":
        raise ConfigError(
            f"launch.server_nodes: {nodes} with rollout.engine embedded, which has no servers; set it to 0 or the"
            " engine to sglang or vllm"
        )
    servers: ServersConfig = config.rollout.sglang if engine == "sglang" else config.rollout.vllm
    field = f"rollout.{engine}.num_servers"
    if servers.urls:
        raise ConfigError(
            f"launch.server_nodes: {nodes} with rollout.{engine}.urls; the job starts servers or attaches"
        )
    if servers.num_servers % nodes:
        raise ConfigError(f"{field}: {servers.num_servers} does not divide over launch.server_nodes {nodes}")
    gpus = servers.num_servers // nodes * servers.tensor
    if config.launch.gpus_per_node and gpus > config.launch.gpus_per_node:
        raise ConfigError(
            f"{field}: {servers.num_servers} on {nodes} nodes with rollout.{engine}.tensor {servers.tensor} need {gpus}"
            f" GPUs a node, launch.gpus_per_node is {config.launch.gpus_per_node}; raise launch.server_nodes"
        )
    return servers


def _with_addresses(config: Config) -> Config:
    """As the job will start it: attached to servers on other nodes."""
    urls = tuple(f"http://server-{index}:1" for index in range(_servers(config).num_servers))
    engine = config.rollout.engine
    servers = getattr(config.rollout, engine).model_copy(update={"urls": urls})
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={engine: servers})})


def _nodes(nodes: int, tasks: int, gpus: int, cores: int) -> dict[str, str | None]:
    return {
        "nodes": str(nodes), "ntasks-per-node": str(tasks), "gpus-per-node": str(gpus) if gpus else None,
        "cpus-per-task": str(cores),
    }  # fmt: skip


def _directives(values: dict[str, str | None] | dict[str, str]) -> list[str]:
    return [f"#SBATCH --{key}{f'={value}' if value else ''}" for key, value in values.items() if value is not None]
