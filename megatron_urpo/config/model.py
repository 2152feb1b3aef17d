"""The model, how it is cut over ranks, its precision and its optimizer."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from megatron_urpo.config.section import Fraction, NonNegative, Positive, Section


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
    timeout_minutes: Positive = Field(
        60.0, description="for an exchange of tensors; other waits end by launch.abort_after"
    )


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
