"""Commands that compute with a model: train, sft, evaluate, replay."""

import signal
import sys
from pathlib import Path

import click

from megatron_urpo.cli.arguments import CONFIG, OVERRIDES
from megatron_urpo.config import SftConfig, load_config, load_section
from megatron_urpo.user_errors import user_errors


@click.command()
@CONFIG
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train with URPO.

    The run folder (run_dir) gets config.yaml, environment.json, metrics.jsonl, transcripts/, checkpoints/ and, at the
    end, model/ as a Hugging Face folder. Started again on the same folder, the run goes on from its newest checkpoint.
    SIGTERM, SIGUSR1 and Ctrl-C give up a rollout, finish an update, save and stop; the exit code is then 85 (start me
    again), after Ctrl-C 130.
    """
    with user_errors():
        loaded, resolved = load_config(config, overrides)
        from megatron_urpo.train import train as run

        code = run(loaded, resolved)
    if code:  # launchers end the other ranks when the first one leaves: those must not lose their exit code by it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


@click.command()
@CONFIG
@OVERRIDES
def sft(config: Path, overrides: tuple[str, ...]) -> None:
    """Train supervised on conversations and write a Hugging Face folder."""
    with user_errors():
        loaded, _ = load_section(SftConfig, config, overrides)
        from megatron_urpo.sft import sft as run

        run(loaded)


@click.command()
@CONFIG
@OVERRIDES
@click.option("--model", type=click.Path(path_type=Path), help="Hugging Face folder to evaluate instead of model.path.")
def evaluate(config: Path, overrides: tuple[str, ...], model: Path | None) -> None:
    """Measure a model on the held-out prompts of a training config.

    Prints one JSON object of metrics. The config's evaluation section says what is measured.
    """
    with user_errors():
        changes = (*overrides, f"model.path={model}") if model else overrides
        loaded, _ = load_config(config, changes)
        from megatron_urpo.evaluate import evaluate_folder

        click.echo(evaluate_folder(loaded))


@click.command()
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
    with user_errors():
        from megatron_urpo.replay import replay as run_again

        changes = [f"parallel.{part.strip()}" for part in layout.split(",")] if layout else []
        agrees = run_again(run, step, [*overrides, *changes])
    sys.exit(0 if agrees else 1)
