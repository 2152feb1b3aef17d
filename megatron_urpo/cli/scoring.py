"""Commands that look at rewards by themselves: score."""

from pathlib import Path

import click

from megatron_urpo.cli.arguments import OVERRIDES
from megatron_urpo.config import ScoreConfig, override_defaults
from megatron_urpo.user_errors import user_errors


@click.command()
@click.argument("rows", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="File of the scored rows.")
@click.option(
    "--answer-pattern", default="", metavar="REGEX",
    help="Finds answers that are not boxed: of the last match the group `answer`, else the first group, else all."
    " ^ and $ are the ends of lines. E.g. '^A: (.*)$'",
)  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out and count rows that cannot be read, instead of stopping.")
def score(rows: Path, overrides: tuple[str, ...], out: Path, answer_pattern: str, skip_bad: bool) -> None:
    """Score completions by exactly the verifiers of training.

    \b
    ROWS is JSONL, one completion a line:
      {"task": "math", "answer": "42" or ["42", "6 * 7"], "completion": "... \\boxed{42}"}
      {"task": "code", "tests": {"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}, "completion": "```python ..."}

    Each row is written to --out with `reward` (null where the verifier failed and training would mask it) and
    `outcome`: correct, wrong, no_answer or verifier_error; a code row with the `cause` of a failure as well. Other
    fields stay as they are. Values of the section `verifier` may be changed, e.g. verifier.code.timeout_seconds=10.
    """
    with user_errors():
        changes = list(overrides)
        config = override_defaults(ScoreConfig, changes).verifier
        if answer_pattern:
            config = config.model_copy(update={"answer_pattern": answer_pattern})
        from megatron_urpo.score import score_file

        click.echo(score_file(rows, out, config, skip_bad))
