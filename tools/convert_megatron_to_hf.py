"""Megatron checkpoint -> Hugging Face folder. Thin: megatron_urpo/conversion does it."""

from pathlib import Path

import click

from megatron_urpo.user_errors import user_errors

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("ckpt_dir", type=PATH)
@click.argument("out_dir", type=PATH)
@click.option("--model", type=PATH, help="Folder of config.json and tokenizer; default: the checkpoint's or its run's.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Of the weights; default: theirs.")
@click.option("--shard-gb", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True,
              help="Largest safetensors file, in 10^9 bytes.")  # fmt: skip
def main(ckpt_dir: Path, out_dir: Path, model: Path | None, dtype: str | None, shard_gb: float) -> None:
    """Convert the Megatron checkpoint CKPT_DIR to a Hugging Face folder OUT_DIR, which must not exist.

    CKPT_DIR is a converted checkpoint or one of a run (RUN/checkpoints/step_000100); of the latter the weights alone
    are read, not the optimizer. One process, no GPU, at most 1.5 GiB of memory whatever the model's size. OUT_DIR gets
    safetensors with their index, config.json, generation config, tokenizer, chat template and manifest.json;
    transformers, SGLang and vLLM load it.

    \b
      python tools/convert_megatron_to_hf.py runs/one/checkpoints/step_000100 step-100
      python tools/convert_megatron_to_hf.py qwen-megatron qwen-again --dtype bfloat16 --shard-gb 2

    Killed or out of room, it leaves no OUT_DIR; start it again. Exit code 2 for input that cannot be converted.
    """
    with user_errors():
        from megatron_urpo.conversion.convert import megatron_to_hf

        done = megatron_to_hf(ckpt_dir, out_dir, model, dtype, int(shard_gb * 1e9))
        click.echo(f"{out_dir}: {len(done.weights.shapes)} tensors, {done.shape.family}")


if __name__ == "__main__":
    main()
