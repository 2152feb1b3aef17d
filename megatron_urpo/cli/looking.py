"""Commands that show something: report, defaults."""

from pathlib import Path

import click

from megatron_urpo.cli.errors import user_errors
from megatron_urpo.config import Config, SftConfig, reference


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write instead of RUN/report.html.")
def report(run: Path, output: Path | None) -> None:
    """Write report.html of a run: one page that needs no network.

    RUN is the run's folder (run_dir); the run may be finished, still going or stopped. The page has the curves, the
    table of before and after, the time by phase, and the groups with everything that was said and scored.
    """
    with user_errors():
        from megatron_urpo.reporting.report import write_report

        click.echo(write_report(run, output))


@click.command()
@click.option("--sft", "for_sft", is_flag=True, help="Of `megatron-urpo sft` instead.")
def defaults(for_sft: bool) -> None:
    """Print every value that a config of `train` can set, with its default and what it means."""
    click.echo(reference(SftConfig if for_sft else Config))
