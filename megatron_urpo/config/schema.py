"""Every value a user can set, with its default and the rule it must obey.

The defaults are the recipe for a 7B model. A section is strict: an unknown key is an error. Rules about one value
stand beside it; rules about several sections stand in `checks.py`; rules about the model's files in `preflight.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from megatron_urpo.types import Task

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

DEFAULT_SCORING_PROMPT = """\
You are a skilled expert at scoring responses. You will be given a question with multiple responses. \
Evaluate and score each response.
[The Begin of Question]{question}[The End of Question]
{responses}
#### Output Format Requirements ####
Scores: <the overall comprehensive score of all responses in order, separate by comma in the boxed, \
e.g., \\boxed{x, x} if there exists 2 responses>."""
DEFAULT_SCORED_RESPONSE = "[The Begin of Response {index}]{response}[The End of Response {index}]"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class ModelConfig(Section):
    path: Path = Field(description="Hugging Face folder: config.json, tokenizer, safetensors")
    tokenizer: Path | None = Field(None, description="folder of the tokenizer; default: the model's own")
    init: Literal["weights", "random"] = Field("weights", description="`random` needs no safetensors")
    spec: Literal["auto", "torch", "te"] = Field("auto", description="layers: `te` where Transformer Engine imports")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class ParallelConfig(Section):
    tensor: PositiveInt = Field(1, description="tensor-parallel size")
    pipeline: PositiveInt = Field(1, description="pipeline-parallel size")
    sequence: bool = Field(False, description="sequence parallel (with tensor > 1)")
    recompute: Literal["none", "selective", "full"] = "none"
    distributed_optimizer: bool = Field(True, description="shard optimizer state over data-parallel ranks")
    timeout_minutes: Positive = Field(60.0, description="for collectives that wait on a rollout")


class Fp8Config(Section):
    """Matrix products of Transformer Engine's layers in 8 bits; the names are megatron-core's."""

    format: Literal["none", "e4m3", "hybrid"] = Field(
        "none", description="`hybrid`: e4m3, and e5m2 for gradients of activations; needs model.spec te and bfloat16"
    )
    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "tensorwise", description="of scales. `delayed` depends on earlier batches; `mxfp8` needs a Blackwell GPU"
    )


class OptimizerConfig(Section):
    lr: Positive = 5e-7
    min_lr: NonNegative = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0, description="training steps of linear warm-up")
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = Field(0.01, description="never on norms and biases")
    clip_grad: NonNegative = Field(1.0, description="global norm; 0 is off")


class Phase(Section):
    until: PositiveInt | None = Field(None, description="first step that is no longer in this phase; last: omit")
    mix: dict[Task, NonNegative] = Field(description="weight of each task")


class DataConfig(Section):
    train: tuple[Path, ...] = Field(description="prompt stores: JSONL or Parquet files")
    prompts_per_step: PositiveInt = 256
    curriculum: tuple[Phase, ...] = (
        Phase(until=100, mix={"preference": 1, "reasoning": 1}),
        Phase(mix={"preference": 1, "reasoning": 1, "instruction": 1}),
    )


class EmbeddedConfig(Section):
    max_batch_tokens: PositiveInt = Field(65536, description="prompt and new tokens that one batch may hold")
    dtype: Literal["bfloat16", "float32"] = "float32"


class ServersConfig(Section):
    """Servers that this run starts, or, with `urls`, servers that are already up."""

    urls: tuple[str, ...] = Field((), description="attach to these instead of starting any")
    num_servers: PositiveInt = 1
    command: tuple[str, ...] = Field(
        ("python", "-m", "sglang.launch_server"), description="program that serves; flags are added to it"
    )
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    tensor: PositiveInt = Field(1, description="tensor-parallel size of each server")
    port: int = Field(0, ge=0, le=65535, description="of the first server, the next has the next; 0: any free ones")
    first_gpu: int | None = Field(None, ge=0, description="server i uses the `tensor` GPUs from first_gpu + i * tensor")
    flags: dict[str, bool | int | float | str] = Field(
        {}, description="more flags of the server by their names without dashes, e.g. {mem-fraction-static: 0.8}"
    )
    environment: dict[str, str] = Field({}, description="environment variables of the servers")
    ready_seconds: Positive = Field(900.0, description="for a server to start, and to come back")
    request_seconds: Positive = Field(1800.0, description="for one completion")
    max_restarts: int = Field(3, ge=0, description="of each server that this run started")
    max_tokens_in_flight: PositiveInt | None = Field(
        None, description="prompt and new tokens asked of a server at once; default: four times what its KV cache holds"
    )


class VLLMServersConfig(ServersConfig):
    command: tuple[str, ...] = Field(
        ("python", "-m", "vllm.entrypoints.openai.api_server"), description="program that serves; flags are added to it"
    )


class RolloutConfig(Section):
    engine: Literal["embedded", "sglang", "vllm"] = "embedded"
    completions_per_prompt: int = Field(8, description="G, the group size")
    temperature: Positive = 1.0
    max_new_tokens: PositiveInt = 4096
    max_prompt_tokens: PositiveInt = Field(4096, description="a longer question is dropped and counted")
    overlap: int = Field(
        0, ge=0, le=1, description="1: the next batch is collected while this one trains, by weights one update older"
    )
    resample_rounds: int = Field(0, ge=0, description="times that groups without signal are replaced in a step")
    embedded: EmbeddedConfig = EmbeddedConfig()
    sglang: ServersConfig = ServersConfig()
    vllm: VLLMServersConfig = VLLMServersConfig()


class WeightSyncConfig(Section):
    """How the policy's weights reach servers; the embedded engine takes them in its own process."""

    transport: Literal["broadcast", "tensor", "disk"] = Field(
        "broadcast", description="process group of rank 0 and all servers; memory of this machine; files"
    )
    bucket_mib: PositiveInt = Field(512, description="of weights that are sent at once; two of them are held")
    folder: Path | None = Field(None, description="for `disk`: where every server can read; default: in run_dir")
    address: str = Field("127.0.0.1", description="for `broadcast`: of this machine, as the servers reach it")
    timeout_seconds: Positive = Field(600.0, description="for one call of an update; a server that hangs is lost then")
    verify: int = Field(0, ge=0, description="updates between comparisons of every server with the trainer; 0: never")


class MismatchConfig(Section):
    """Engine and trainer compute log-probabilities of the same tokens; where they drift apart training goes wrong.

    Measured at every step: the trainer's own are needed anyway.
    """

    max_kl: Positive = Field(0.1, description="`mismatch/kl`, in nats a token, above which the run stops")


class TemplateConfig(Section):
    prompt: str = Field(DEFAULT_SCORING_PROMPT, description="has {question} and {responses}")
    response: str = Field(DEFAULT_SCORED_RESPONSE, description="has {response} and {index}")


class RefereeConfig(Section):
    template: TemplateConfig = TemplateConfig()
    score_range: tuple[float, float] = (0.0, 10.0)
    temperature: NonNegative = Field(0.0, description="of judging; 0 is greedy. The one re-ask samples at 1")
    votes: PositiveInt = Field(1, description="asks for one group, each with a fresh permutation")
    max_new_tokens: PositiveInt = 4096
    max_prompt_tokens: PositiveInt = 16384
    overflow: Literal["truncate", "skip"] = "truncate"


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
    max_tokens_per_micro_batch: PositiveInt = 16384


class VerifierConfig(Section):
    workers: PositiveInt = Field(2, description="killable child processes")
    timeout_seconds: Positive = 2.0
    memory_mib: PositiveInt = 1024


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
    keep_last: PositiveInt = 2
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
