"""Commands around data: pack, inspect."""

from pathlib import Path

import click

from megatron_urpo.cli.arguments import CONFIG, OVERRIDES
from megatron_urpo.config import load_section
from megatron_urpo.config.pack import PackConfig
from megatron_urpo.user_errors import user_errors


@click.command()
@CONFIG
@OVERRIDES
def pack(config: Path, overrides: tuple[str, ...]) -> None:
    """Make one prompt store from the files of many publishers.

    \b
    CONFIG names sources {dataset, path, task, weight, limit, filters}, the run's tokenizer and the output folder.
    `megatron-urpo defaults --pack` lists all values and the datasets that have a reader.

    The store is a folder of Parquet shards with manifest.json, rejected.jsonl (rows that do not fit, with file, line
    and reason) and removed.jsonl (too long, duplicates, evaluation questions). `data.train` takes the folder.
    """
    with user_errors():
        loaded, _ = load_section(PackConfig, config, overrides)
        from megatron_urpo.packing.pool import start_loading

        if loaded.processes != 1:
            start_loading()
        from megatron_urpo.packing.pack import pack as run

        run(loaded)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Its folder, where it is not where it was packed.")
@click.option("--prompts", "-n", type=click.IntRange(min=0), default=2, show_default=True, help="To show of each task.")
@click.option("--task", type=click.Choice(["reasoning", "preference", "instruction"]), help="Show prompts of it alone.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts and of candidates' order.")
def inspect(store: Path, tokenizer: Path | None, prompts: int, task: str | None, seed: int) -> None:
    """Show what a packed store holds: tables, lengths, and prompts as the model sees them.

    STORE is a folder that `pack` wrote; every byte of it is checked. Control characters are shown as escapes.
    """
    with user_errors():
        from megatron_urpo.packing.inspect import inspect_store

        inspect_store(store, tokenizer, prompts, task, seed)
