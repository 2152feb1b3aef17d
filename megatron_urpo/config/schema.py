"""Every value a user can set, with its default and the rule it must obey.

The defaults are the recipe for a 7B model. A section is strict: an unknown key is an error. Rules about one value
stand beside it; rules about several sections stand in `checks.py`; rules about the model's files in `preflight/`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from megatron_urpo.config.data import DataConfig
from megatron_urpo.config.engine import (
    EmbeddedConfig,
    MismatchConfig,
    ServersConfig,
    VLLMServersConfig,
    WeightSyncConfig,
)
from megatron_urpo.config.launch import LaunchConfig
from megatron_urpo.config.model import Fp8Config, ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.reward import RefereeConfig, VerifierConfig
from megatron_urpo.config.section import Fraction, NonNegative, Positive, Section


class RolloutConfig(Section):
    engine: Literal["embedded", "sglang", "vllm"] = "embedded"
    completions_per_prompt: int = Field(8, description="G, the group size")
    temperature: Positive = 1.0
    max_new_tokens: PositiveInt = 4096
    max_prompt_tokens: PositiveInt = Field(4096, description="a longer question is dropped and counted")
    overlap: int = Field(
        0, ge=0, le=1, description="1: the next batch is collected while this one trains, by weights one update older"
    )
    release_memory: bool = Field(
        False, description="servers give their GPU memory back while the policy trains, for those that share its GPUs"
    )
    resample_rounds: int = Field(0, ge=0, description="times that groups without signal are replaced in a step")
    embedded: EmbeddedConfig = EmbeddedConfig()
    sglang: ServersConfig = ServersConfig()
    vllm: VLLMServersConfig = VLLMServersConfig()


class LossConfig(Section):
    epochs: PositiveInt = Field(4, description="passes over each collected batch")
    minibatches: PositiveInt = Field(1, description="optimizer steps an epoch")
    clip_low: Fraction = 0.2
    clip_high: NonNegative = 0.28
    normalization: Literal["tokens", "responses"] = "tokens"
    old_logprobs: Literal["recompute", "rollout"] = "recompute"
    kl_coefficient: NonNegative = Field(0.0, description="of the k3 estimate to model.path; 0 keeps no reference")
    rollout_correction: Literal["none", "token_tis", "sequence_mis"] = Field(
        "none", description="importance weights between the engine's log-probabilities and the trainer's"
    )
    rollout_correction_cap: float = Field(2.0, ge=1, description="where a weight is cut off, or a sequence masked")
    max_tokens_per_micro_batch: PositiveInt = Field(
        20480, description="holds the longest sample: the default is the referee's prompt and verdict"
    )


class EvaluationConfig(Section):
    data: tuple[Path, ...] = Field((), description="held-out prompt stores; none: no evaluation")
    every: int = Field(0, ge=0, description="steps between evaluations; 0: only first and last")
    completions_per_prompt: PositiveInt = Field(4, description="for reasoning and preference")
    temperature: NonNegative = 1.0
    greedy: bool = Field(True, description="also at temperature 0, as `eval/<task>/greedy_…`")
    scorer: tuple[str, ...] = Field(
        (), description="program that rates held-out instruction answers: JSONL {prompt, completion} to {quality}"
    )


class CheckpointConfig(Section):
    every: int = Field(50, ge=0, description="steps between checkpoints; 0: only at the end or when stopped")
    resume: bool = Field(True, description="go on from the run folder's newest checkpoint")
    background: bool = Field(True, description="write while training goes on; false: the loop waits for the disk")
    keep_last: PositiveInt = Field(2, description="newest checkpoints that are kept")
    keep_every: int = Field(0, ge=0, description="steps; a checkpoint at a multiple is kept for good; 0: none is")
    keep_batches: bool = Field(True, description="of the steps since the oldest checkpoint that is kept, for `replay`")


class LoggingConfig(Section):
    transcripts: bool = True
    task_gradients_every: int = Field(
        10, ge=0, description="steps between measurements of each task's gradient norm, one more pass; 0: never"
    )
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "megatron-urpo"


class Config(Section):
    """A run of `megatron-urpo train`."""

    run_dir: Path = Field(description="folder of this run; made if missing")
    num_steps: PositiveInt = 1000
    seed: int = 0
    max_empty_steps: PositiveInt = Field(10, description="steps in a row without any signal before the run stops")
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    fp8: Fp8Config = Fp8Config()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    referee: RefereeConfig = RefereeConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    loss: LossConfig = LossConfig()
    mismatch: MismatchConfig = MismatchConfig()
    verifier: VerifierConfig = VerifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    launch: LaunchConfig = LaunchConfig()


class ScoreConfig(Section):
    """What `megatron-urpo score` can set: the verifiers of training."""

    verifier: VerifierConfig = VerifierConfig()


class SftDataConfig(Section):
    train: Path = Field(description="JSONL of {messages, weight?, prompt_weight?}, read in its own order")
    rows_per_step: PositiveInt = 128
    max_tokens_per_micro_batch: PositiveInt = 16384


class SftConfig(Section):
    """A run of `megatron-urpo sft`: supervised training, written as a Hugging Face folder."""

    output: Path = Field(description="Hugging Face folder to write")
    num_steps: PositiveInt
    seed: int = 0
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    fp8: Fp8Config = Fp8Config()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    data: SftDataConfig
    launch: LaunchConfig = LaunchConfig()
