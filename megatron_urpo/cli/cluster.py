"""Commands for clusters: sbatch, and server, which its jobs call."""

import os
import socket
from pathlib import Path

import click

from megatron_urpo.cli.arguments import CONFIG, OVERRIDES
from megatron_urpo.config import load_config
from megatron_urpo.user_errors import user_errors


@click.command()
@CONFIG
@OVERRIDES
@click.option("--nodes", type=int, required=True, help="That train; launch.server_nodes come on top.")
@click.option("--partition", required=True)
@click.option("--account")
@click.option("--qos")
@click.option("--name", help="Of the job; default: urpo- and the name of the run folder.")
@click.option("--gpu", default="h100", show_default=True, help="Kind that `plan` checks the memory of.")
@click.option("--submit/--dry-run", "submitting", default=False, help="Queue it, or print it (the default).")
def sbatch(
    config: Path, overrides: tuple[str, ...], nodes: int, partition: str, account: str | None, qos: str | None,
    name: str | None, gpu: str, submitting: bool,
) -> None:  # fmt: skip
    """Write a run's SLURM job from its own config, and queue it.

    Nodes hold launch.gpus_per_node GPUs with a rank each; launch.server_nodes gives servers nodes of their own in the
    same job; launch.container, launch.time and launch.max_restarts are the job's. What `plan` refuses is refused here,
    a partition that does not exist, and a run folder that another run has. Relative paths in the config count from this
    folder.

    \b
      megatron-urpo sbatch examples/qwen2.5-7b/config.yaml --nodes 4 --partition gpu --account me
      megatron-urpo sbatch examples/qwen2.5-7b/config.yaml --nodes 4 --partition gpu --account me --submit

    The job saves and is queued again before its time is up, when it is preempted, and when a rank dies; not where the
    config is wrong, nor where it failed twice at the same checkpoint.
    """
    with user_errors():
        loaded, _ = load_config(config, overrides)
        from megatron_urpo.cluster.job import Request, check_job, render_job
        from megatron_urpo.cluster.slurm import submit

        request = Request(nodes, partition, account, qos, name)
        dead = check_job(loaded, request, gpu)
        if dead is not None:
            click.echo(f"the job takes over {dead}", err=True)
        text = render_job(loaded, config, overrides, request)
        click.echo(submit(text, loaded.run_dir, account) if submitting else text, nl=submitting)


@click.command(hidden=True)
@CONFIG
@OVERRIDES
@click.option("--first-port", type=int, required=True, help="First of 18 from which a free one is taken.")
@click.option("--address-folder", type=click.Path(path_type=Path), required=True, help="Gets server_INDEX.url.")
def server(config: Path, overrides: tuple[str, ...], first_port: int, address_folder: Path) -> None:
    """Run one server of a run under srun, as job scripts do; it listens on this node's own address.

    Ends with SIGTERM or SIGUSR1. Exit code 1 where it does not stay up.
    """
    with user_errors():
        loaded, _ = load_config(config, overrides)
        from megatron_urpo.inference.serve import serve

        index, local = (int(os.environ.get(f"SLURM_{name}ID", "0")) for name in ("PROC", "LOCAL"))
        host = socket.gethostbyname(socket.gethostname())
        serve(loaded, index, local, host, first_port, address_folder, click.echo)
