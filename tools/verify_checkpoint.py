"""Compare two checkpoints. Thin: megatron_urpo/conversion does it."""

import sys
from pathlib import Path

import click

from megatron_urpo.user_errors import user_errors

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--model", type=PATH, help="Folder of config.json, for a run's checkpoint whose model has moved.")
@click.option("--tolerance", type=click.FloatRange(min=0), metavar="X",
              help="Let values differ by X times the largest of their tensor.")  # fmt: skip
@click.option("--logits", is_flag=True, help="Compare log-probabilities of fixed tokens, too: whole models in memory.")
@click.option("--logits-tolerance", type=click.FloatRange(min=0), default=1e-4, show_default=True)
def main(a: Path, b: Path, model: Path | None, tolerance: float | None, logits: bool, logits_tolerance: float) -> None:
    """Compare the checkpoints A and B tensor by tensor: Hugging Face folders, converted or run checkpoints.

    Tensors of one dtype must have the same bits; of two dtypes, they may differ by the rounding of the coarser one.
    What differs, is missing or extra is named. A side with a manifest.json is also held against that. --logits asks
    each side's own implementation (transformers, or the trainer's model) for log-probabilities.

    Exit code 0: equal. 1: different. 2: one of them cannot be read.
    """
    with user_errors():
        from megatron_urpo.conversion.verify import verify

        findings, first, second = verify(a, b, model, tolerance)
        for line in findings.lines:
            click.echo(line)
        same = not findings.lines
        if logits and first.shape.vocab_size == second.shape.vocab_size:
            from megatron_urpo.conversion.logits import logprob_gap

            gap = logprob_gap(first, second)
            same = same and gap <= logits_tolerance
            click.echo(f"log-probabilities: at most {gap:.2e} apart ({logits_tolerance:g} allowed)")
        word = "equal" if same else "different"
        click.echo(f"{word}: {findings.num_tensors} tensors, {findings.num_bytes / 1e9:.3f} GB compared")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
