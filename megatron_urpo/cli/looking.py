"""Commands that show something: report, defaults."""

from pathlib import Path

import click

from megatron_urpo.config import Config, SftConfig, reference
from megatron_urpo.config.pack import FilterConfig, PackConfig, SourceConfig
from megatron_urpo.user_errors import user_errors


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
@click.option("--sft", "of", flag_value="sft", help="Of `megatron-urpo sft` instead.")
@click.option("--pack", "of", flag_value="pack", help="Of `megatron-urpo pack` instead, and its datasets.")
def defaults(of: str | None) -> None:
    """Print every value that a config of `train` can set, with its default and what it means."""
    if of == "pack":
        from megatron_urpo.data.sources import READERS

        click.echo(reference(PackConfig))
        click.echo(f"\n# a source\n{reference(SourceConfig)}\n\n# a filter\n{reference(FilterConfig)}\n\n# datasets")
        for name, reader in READERS.items():
            click.echo(f"#   {name}: {reader.task} from {', '.join(reader.columns)}")
        return
    click.echo(reference(SftConfig if of == "sft" else Config))
