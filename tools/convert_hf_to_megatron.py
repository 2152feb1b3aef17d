"""Hugging Face folder -> Megatron checkpoint. Thin: megatron_urpo/conversion does it."""

from pathlib import Path

import click

from megatron_urpo.user_errors import user_errors

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("hf_dir", type=PATH)
@click.argument("out_dir", type=PATH)
@click.option("--format", "kind", type=click.Choice(["torch_dist", "shards"]), default="torch_dist", show_default=True)
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel size, for shards.")
@click.option("--pp", type=click.IntRange(1), default=1, show_default=True, help="Pipeline-parallel size, for shards.")
@click.option(
    "--spec", type=click.Choice(["torch", "te"]), default="torch", show_default=True,
    help="Whose names shards have: megatron-core's own layers, or Transformer Engine's.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Of the weights; default: theirs.")
def main(hf_dir: Path, out_dir: Path, kind: str, tp: int, pp: int, spec: str, dtype: str | None) -> None:
    """Convert the Hugging Face model folder HF_DIR to Megatron weights in OUT_DIR, which must not exist.

    One process, no GPU, at most 1.5 GiB of memory whatever the model's size. OUT_DIR gets config.json, tokenizer and
    chat template, manifest.json (a hash of every tensor) and weights/.

    \b
    torch_dist  one checkpoint that every layout loads: `model.path: OUT_DIR` in a config of train, sft or evaluate
    shards      weights/tp_T_pp_P.safetensors, a file a rank, with the names of that rank's Megatron module

    \b
      python tools/convert_hf_to_megatron.py Qwen2.5-7B qwen-megatron
      python tools/convert_hf_to_megatron.py Qwen2.5-7B qwen-tp4 --format shards --tp 4 --pp 2

    Killed or out of room, it leaves no OUT_DIR; start it again. Exit code 2 for input that cannot be converted.
    """
    with user_errors():
        from megatron_urpo.config import ConfigError
        from megatron_urpo.conversion.convert import Layout, hf_to_megatron

        if kind == "torch_dist" and (tp, pp, spec) != (1, 1, "torch"):
            raise ConfigError("--tp, --pp and --spec are for --format shards; a torch_dist checkpoint has no layout")
        layout = Layout("shards" if kind == "shards" else "torch_dist", tp, pp, "te" if spec == "te" else "torch")
        done = hf_to_megatron(hf_dir, out_dir, layout, dtype)
        click.echo(f"{out_dir}: {len(done.weights.shapes)} tensors, {done.shape.family}")


if __name__ == "__main__":
    main()
