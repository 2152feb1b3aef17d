"""Everything that can be known to be wrong before a process group or a GPU is touched, checked against the files.

`config/` checks what the config says by itself; this checks it against the model folder, the tokenizer, the prompt
stores, the launcher and the checkpoint that a run would go on from.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_urpo.checkpoints.state import check_checkpoint, expected_layout, newest_checkpoint
from megatron_urpo.config import Config, ConfigError
from megatron_urpo.config.model import Fp8Config, ModelConfig, ParallelConfig
from megatron_urpo.data.chat import HuggingFaceTokenizer, load_tokenizer
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.manifest import check_made_for
from megatron_urpo.data.store import load_prompts
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.data.table import PromptTable
from megatron_urpo.inference.connect import check_engine
from megatron_urpo.policy.experts import check_experts
from megatron_urpo.policy.fp8 import check_fp8
from megatron_urpo.policy.hf.shape import ModelShape, check_layout, read_shape
from megatron_urpo.policy.parallel import check_world_size, launched_world_size
from megatron_urpo.policy.spec import choose_spec
from megatron_urpo.policy.weights.kinds import is_megatron, open_weights
from megatron_urpo.preflight.lengths import check_lengths
from megatron_urpo.preflight.verifying import check_verifier
from megatron_urpo.protocols import ChatTokenizer


@dataclass(frozen=True)
class Inputs:
    """What a run reads, loaded and checked. The same on every rank."""

    shape: ModelShape
    tokenizer: ChatTokenizer
    prompts: PromptTable
    held_out: PromptTable
    code_isolation: str | None = None
    """What programs run in; None where no prompt asks for one."""

    def stream(self, config: Config) -> PromptStream:
        return PromptStream(self.prompts, config.data.curriculum, config.data.prompts_per_step, config.seed)


def check_inputs(config: Config) -> Inputs:
    """Loads what the config names. Raises ConfigError or DataError, one line each, for the first thing wrong."""
    shape, tokenizer = check_model(config.model, config.parallel, config.fp8)
    check_lengths(config, shape)
    _check_logging(config)
    _check_run_dir(config.run_dir)
    prompts = _load_prompts("data.train", config.data.train, config, tokenizer)
    held_out = _load_prompts("evaluation.data", config.evaluation.data, config, tokenizer)
    isolation = check_verifier(config.verifier, prompts.has_code_tests() or held_out.has_code_tests())
    inputs = Inputs(shape, tokenizer, prompts, held_out, isolation)
    _check_servers(config)
    check_engine(config, shape.vocab_size)
    stream = inputs.stream(config)  # raises where the curriculum asks for a task that the store lacks
    check_program(config.evaluation.scorer)
    _check_resume(config, shape, stream)
    return inputs


def check_model(model: ModelConfig, layout: ParallelConfig, fp8: Fp8Config) -> tuple[ModelShape, HuggingFaceTokenizer]:
    """Shape and tokenizer of a model that the launched ranks can hold."""
    shape = read_shape(model.path)
    check_layout(shape, layout.tensor, layout.pipeline)
    check_world_size(layout, launched_world_size())
    check_fp8(fp8, model, layout, shape, choose_spec(model.spec))
    check_experts(shape, layout, torch.cuda.is_available())
    if model.init == "weights":
        open_weights(model.path, shape).check()
    tokenizer = load_tokenizer(model.tokenizer or model.path)
    if tokenizer.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"model.tokenizer: its {tokenizer.vocab_size} tokens do not fit the model's vocab_size {shape.vocab_size};"
            " use the tokenizer that the model was trained with"
        )
    return shape, tokenizer


def _load_prompts(field: str, paths: Sequence[Path], config: Config, tokenizer: HuggingFaceTokenizer) -> PromptTable:
    """The prompts of stores; packed ones must have been measured with this run's tokenizer and scoring prompt."""
    limits = {
        "reasoning": config.rollout.max_prompt_tokens,
        "preference": config.referee.max_prompt_tokens,
        "instruction": config.rollout.max_prompt_tokens,
    }
    try:
        prompts = load_prompts(paths)
        identity = tokenizer.identity() if prompts.manifests else {}
        for folder, manifest in prompts.manifests:
            check_made_for(manifest, folder, identity, config.referee.template.model_dump(), limits)
    except DataError as error:
        raise DataError(f"{field}: {error}") from None
    return prompts


def check_program(command: Sequence[str]) -> None:
    if command and shutil.which(command[0]) is None and not Path(command[0]).is_file():
        raise ConfigError(f"evaluation.scorer: no program {command[0]!r} on the PATH; give a command that can be run")


def _check_servers(config: Config) -> None:
    """Servers that this run starts load model.path themselves before the first weights are pushed."""
    engine = config.rollout.engine
    if engine != "embedded" and not getattr(config.rollout, engine).urls and is_megatron(config.model.path):
        raise ConfigError(
            f"model.path: {config.model.path} holds Megatron weights, which {engine} servers cannot load; make a"
            f" Hugging Face folder of it with `python tools/convert_megatron_to_hf.py {config.model.path} FOLDER`"
            " and give that"
        )


def _check_logging(config: Config) -> None:
    if config.logging.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"logging.wandb: {config.logging.wandb} needs the package wandb, which is not installed; install the"
            " `wandb` extra or set it to `off`"
        )


def _check_run_dir(run_dir: Path) -> None:
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ConfigError(f"run_dir: {run_dir} cannot be a folder, since {place} is a file; give another path")


def _check_resume(config: Config, shape: ModelShape, stream: PromptStream) -> None:
    folder = newest_checkpoint(config.run_dir)
    if folder is None:
        return
    if not config.checkpoint.resume:
        raise ConfigError(
            f"checkpoint.resume: false, and {config.run_dir} holds checkpoints up to {folder.name}, which a new run"
            " would mix up with its own; give another run_dir, or remove them"
        )
    stream.load_state(check_checkpoint(folder, shape, expected_layout(config)).stream)
