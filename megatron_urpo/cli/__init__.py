"""The command `megatron-urpo`. A new command is a function in the module of its kind and a place in the list below."""

import click

from megatron_urpo import __version__
from megatron_urpo.cli.cluster import sbatch, server
from megatron_urpo.cli.data import inspect, pack
from megatron_urpo.cli.looking import defaults, report
from megatron_urpo.cli.planning import doctor, plan
from megatron_urpo.cli.scoring import score
from megatron_urpo.cli.training import evaluate, replay, sft, train


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """One model answers and judges, trained in one loop: URPO on Megatron-Core.

    \b
    Every command takes a YAML file and, after it, single values to change:
      megatron-urpo train examples/miniature/config.yaml num_steps=10 optimizer.lr=1e-4
    `megatron-urpo defaults` lists all of them.

    \b
    Started by torchrun or srun it uses all their ranks:
      torchrun --nproc-per-node 8 --no-python megatron-urpo train CONFIG parallel.tensor=4
    """


for command in (
    train, sft, evaluate, replay, report, score, pack, inspect, plan, doctor, sbatch, server, defaults,
):  # fmt: skip
    main.add_command(command)
