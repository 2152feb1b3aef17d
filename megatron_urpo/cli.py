"""The command `megatron-urpo`."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click

from megatron_urpo import __version__
from megatron_urpo.config import Config, ConfigError, SftConfig, load_config, load_section, reference

CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")


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


@main.command()
@CONFIG
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train with URPO.

    The run folder (run_dir) gets config.yaml, environment.json, metrics.jsonl, transcripts/, checkpoints/ and, at the
    end, model/ as a Hugging Face folder. Started again on the same folder, the run goes on from its newest checkpoint.
    SIGTERM and Ctrl-C save and stop; the exit code is then 85 (start me again) or 130.
    """
    with _user_errors():
        loaded, resolved = load_config(config, overrides)
        from megatron_urpo.train import train as run

        code = run(loaded, resolved)
    sys.exit(code)


@main.command()
@CONFIG
@OVERRIDES
def sft(config: Path, overrides: tuple[str, ...]) -> None:
    """Train supervised on conversations and write a Hugging Face folder."""
    with _user_errors():
        loaded, _ = load_section(SftConfig, config, overrides)
        from megatron_urpo.sft import sft as run

        run(loaded)


@main.command()
@CONFIG
@OVERRIDES
@click.option("--model", type=click.Path(path_type=Path), help="Hugging Face folder to evaluate instead of model.path.")
def evaluate(config: Path, overrides: tuple[str, ...], model: Path | None) -> None:
    """Measure a model on the held-out prompts of a training config.

    Prints one JSON object of metrics. The config's evaluation section says what is measured.
    """
    with _user_errors():
        changes = (*overrides, f"model.path={model}") if model else overrides
        loaded, _ = load_config(config, changes)
        from megatron_urpo.evaluate_folder import evaluate_folder

        click.echo(evaluate_folder(loaded))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write instead of RUN/report.html.")
def report(run: Path, output: Path | None) -> None:
    """Write report.html of a run: one page that needs no network.

    RUN is the run's folder (run_dir); the run may be finished, still going or stopped. The page has the curves, the
    table of before and after, the time by phase, and the groups with everything that was said and scored.
    """
    with _user_errors():
        from megatron_urpo.reporting.report import write_report

        click.echo(write_report(run, output))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--step", type=int, required=True, metavar="N", help="The step that made policy version N out of N - 1.")
@click.option("--layout", metavar="NAME=VALUE,...", help="Other values of the section parallel, e.g. tensor=2.")
def replay(run: Path, overrides: tuple[str, ...], step: int, layout: str | None) -> None:
    """Run a step of a run again and compare its numbers with the recorded ones.

    RUN is the run's folder; nothing is written there. A run keeps its batches since the oldest checkpoint that it
    keeps. The weights come from the newest checkpoint before step N (the model folder where there is none), by the
    updates in between, under the config that the batch was written under; KEY.SUB=VALUE changes it.

    \b
    At another layout, under torchrun with its number of ranks:
      torchrun --nproc-per-node 2 --no-python megatron-urpo replay RUN --step N --layout tensor=2,sequence=true

    Exit code 0: as recorded, at the same layout on a CPU to the last digit, else loss and gradient norm within 1e-4
    (float32) or 5e-2 (bfloat16). 1: it differs. 2: it cannot be replayed; the message says which steps can.
    """
    with _user_errors():
        from megatron_urpo.replay import replay as run_again

        changes = [f"parallel.{part.strip()}" for part in layout.split(",")] if layout else []
        agrees = run_again(run, step, [*overrides, *changes])
    sys.exit(0 if agrees else 1)


@main.command()
@click.option("--sft", "for_sft", is_flag=True, help="Of `megatron-urpo sft` instead.")
def defaults(for_sft: bool) -> None:
    """Print every value that a config of `train` can set, with its default and what it means."""
    click.echo(reference(SftConfig if for_sft else Config))


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """A mistake in the user's files is one line and exit code 2, a run that cannot go on one line and exit code 1.

    Either is told once; everything else keeps its traceback.
    """
    # megatron-core and torch warn, at import and on first use, of choices that this package made knowingly.
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b")
    from megatron_urpo.data.errors import DataError
    from megatron_urpo.health import TrainingStopped
    from megatron_urpo.protocols import EngineError, RankZeroError, WeightsLost
    from megatron_urpo.quality import QualityError

    try:
        yield
    except (ConfigError, DataError) as error:
        _tell("\n".join(f"error: {line}" for line in str(error).splitlines()))
        sys.exit(2)
    except RankZeroError:
        sys.exit(1)  # rank 0 says it
    except (TrainingStopped, QualityError, EngineError, WeightsLost) as error:
        _tell(f"Error: {error}")
        sys.exit(1)


def _tell(text: str) -> None:
    """Once, though every rank meets the same error."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)


if __name__ == "__main__":
    main()
