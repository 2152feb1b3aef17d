"""Commands for before a run: plan, doctor."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from megatron_urpo.cli.arguments import CONFIG, OVERRIDES
from megatron_urpo.config import load_config
from megatron_urpo.user_errors import user_errors

if TYPE_CHECKING:
    from megatron_urpo.doctor import Check


@click.command()
@CONFIG
@OVERRIDES
@click.option("--gpu", default="h100", show_default=True, help="Kind: a100-40, a100, h100, h200 or b200.")
@click.option("--gpus", default=8, show_default=True, type=int, help="How many train; those of servers come on top.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object, bytes everywhere.")
@click.option("--search", is_flag=True, help="List every layout of these GPUs that fits, the cheapest first.")
def plan(config: Path, overrides: tuple[str, ...], gpu: str, gpus: int, as_json: bool, search: bool) -> None:
    """Work out what a run needs of its GPUs, without one.

    The model's folder needs no more than config.json. Shown are bytes on the GPUs of each pipeline stage, what servers
    take and leave, the batch in words, and what does not fit, with the nearest layouts that do. Weights, gradients and
    optimizer are exact; activations are counted, with every micro-batch full; the rest is said to be assumed.

    \b
    Without flags of their own in the config, layouts can be tried as overrides:
      megatron-urpo plan CONFIG --gpu h200 --gpus 64 parallel.tensor=8 parallel.sequence=true

    Exit code 0: it fits. 1: it does not. 2: the config or the numbers make no sense.
    """
    with user_errors():
        loaded, _ = load_config(config, overrides)
        from megatron_urpo.planning import make_plan
        from megatron_urpo.planning.show import show

        made = make_plan(loaded, gpu, gpus)
        if as_json:
            click.echo(json.dumps(made.as_dict()))
        else:
            from rich.console import Console

            Console(soft_wrap=True).print(show(made, loaded, search))
    sys.exit(1 if made.problems else 0)


COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "none": "dim"}


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are written."
)
@click.option("--require-gpu", is_flag=True, help="A node without a GPU fails.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of {name, status, found, remedy}.")
def doctor(folder: Path, require_gpu: bool, as_json: bool) -> None:
    """Look at this node: what a run would miss here, and what to do about it.

    Nothing is changed. `ok`: as it should be. `warn`: a run works, but slower, untested or with less. `fail`: a run
    would break. `none`: there is nothing to check here.

    \b
    Under srun the nodes are compared too (shared folder, clocks); the first task says what was found:
      srun --ntasks-per-node 1 megatron-urpo doctor --folder /shared/runs --require-gpu

    Exit code 0: no `fail`. 1: at least one.
    """
    with user_errors():
        from megatron_urpo.doctor import examine, gather_facts
        from megatron_urpo.doctor.meeting import meet

        checks = examine(gather_facts(folder, meet(folder)), require_gpu)
    failed = any(check.status == "fail" for check in checks)
    if failed or os.environ.get("SLURM_PROCID", "0") == "0":
        _tell_checks(checks, as_json)
    sys.exit(1 if failed else 0)


def _tell_checks(checks: "Sequence[Check]", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"megatron-urpo doctor on {socket.gethostname()}", title_justify="left")
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = f"[{COLOURS[check.status]}]{check.status}[/]"
        table.add_row(status, check.name, escape(check.found), escape(check.remedy))
    Console().print(table)
