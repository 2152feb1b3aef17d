"""A ModelShape becomes this rank's part of a Megatron GPTModel, with weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from megatron_urpo.config.model import Fp8Config, ModelConfig, ParallelConfig
from megatron_urpo.policy.experts import check_experts, expert_arguments
from megatron_urpo.policy.fp8 import check_fp8, fp8_arguments
from megatron_urpo.policy.hf.shape import ModelShape, check_layout, read_shape
from megatron_urpo.policy.hf.table import WeightEntry, padded_vocab_size, weight_entries
from megatron_urpo.policy.hf.tensors import shard
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.spec import SpecName, choose_spec, layer_spec
from megatron_urpo.policy.weights.kinds import open_weights
from megatron_urpo.policy.weights.source import Weights

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class HiddenStateModel(GPTModel):  # type: ignore[misc]
    """A GPTModel whose last stage ends with the hidden states, [tokens, 1, hidden], instead of making logits of them.

    `logprobs.py` takes it from there with `output_weight`, a chunk of tokens at a time.
    """

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    @property
    def output_weight(self) -> Tensor:
        """This rank's rows of the output layer, [vocabulary part, hidden]; on the last stage."""
        tied = self.share_embeddings_and_output_weights
        weight: Tensor = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return weight


@dataclass
class ModelPart:
    """This rank's part: the module in its training dtype, and the names that tie it to the whole."""

    module: HiddenStateModel
    shape: ModelShape
    spec: SpecName
    config: TransformerConfig
    parameters: dict[str, torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = dict(self.module.named_parameters())

    def local_name(self, entry: WeightEntry) -> str | None:
        """The name of `entry` in this stage's module; None where another stage holds it."""
        name = entry.megatron
        if name.startswith("decoder.layers."):
            _, _, layer, rest = name.split(".", 3)
            name = f"decoder.layers.{int(layer) - get_transformer_layer_offset(self.config)}.{rest}"
        return name if name in self.parameters else None


def build_model(model: ModelConfig, layout: ParallelConfig, fp8: Fp8Config, parallel: Parallel) -> ModelPart:
    """Builds this rank's part and loads (or draws) its weights. Raises ConfigError for what does not fit."""
    shape = read_shape(model.path)
    check_layout(shape, parallel.tensor, parallel.pipeline)
    spec = choose_spec(model.spec)
    check_fp8(fp8, model, layout, shape, spec)
    check_experts(shape, layout, torch.cuda.is_available())
    config = transformer_config(shape, layout, fp8, DTYPES[model.dtype], spec)
    module = HiddenStateModel(
        config,
        layer_spec(spec, config),
        vocab_size=padded_vocab_size(shape.vocab_size, parallel.tensor),
        max_sequence_length=shape.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
    )
    # megatron-core fixes three of the four constants of Llama's scaling; these are the model's own.
    module.rotary_pos_emb.inv_freq = inverse_frequencies(shape)
    module.to(parallel.device)
    part = ModelPart(module, shape, spec, config)
    if model.init == "weights":
        load_weights(part, open_weights(model.path, shape), parallel)
    return part


def transformer_config(
    shape: ModelShape, layout: ParallelConfig, fp8: Fp8Config, dtype: torch.dtype, spec: SpecName = "torch"
) -> TransformerConfig:
    on_gpu = torch.cuda.is_available()
    recompute: dict[str, Any] = {}
    if layout.recompute != "none":
        recompute["recompute_granularity"] = layout.recompute
    if layout.recompute == "full":
        recompute |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=shape.initializer_range,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence,
        # Micro-batches are packed to different lengths.
        variable_seq_lengths=layout.pipeline > 1,
        calculate_per_token_loss=True,  # gradients are sums; the loss divides once, see update.py
        use_cpu_initialization=not on_gpu,
        gradient_accumulation_fusion=False,
        # These fusions go through torch.compile, which costs more than it gives on a CPU.
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=on_gpu,
        **recompute,
        **expert_arguments(shape, spec),
        **fp8_arguments(fp8),
    )


def inverse_frequencies(shape: ModelShape) -> Tensor:
    """Rotary frequencies, [head_dim / 2]. Source: the Llama 3.1 model card's scaling rule."""
    exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    frequency = 1.0 / shape.rope_theta**exponent
    scaling = shape.rope_scaling
    if scaling is None:
        return frequency
    # Wavelengths a context can hold keep their frequency, the longest are stretched, those between are blended.
    turns = scaling.original_max_positions * frequency / (2 * torch.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequency / scaling.factor + blend * frequency


def load_weights(part: ModelPart, source: Weights, parallel: Parallel) -> None:
    """Copies this rank's part out of `source`, one weight at a time."""
    with torch.no_grad():
        for entry in weight_entries(part.shape, part.spec):
            target = part.local_name(entry)
            if target is not None:
                whole = source.whole(entry)
                part.parameters[target].copy_(shard(entry, whole, parallel.tensor_rank, parallel.tensor))
        copy = tied_output_copy(part)
        if copy is not None:
            entry = weight_entries(part.shape, part.spec)[0]
            copy.copy_(shard(entry, source.whole(entry), parallel.tensor_rank, parallel.tensor))


def frozen_copy(
    part: ModelPart, model: ModelConfig, layout: ParallelConfig, fp8: Fp8Config, parallel: Parallel
) -> ModelPart:
    """A second module with the same weights that is never trained; it takes as much memory as the weights do."""
    copy = build_model(model.model_copy(update={"init": "random"}), layout, fp8, parallel)
    with torch.no_grad():
        for name, parameter in copy.parameters.items():
            parameter.copy_(part.parameters[name])
    copy.module.requires_grad_(False).eval()
    return copy


def tied_output_copy(part: ModelPart) -> Tensor | None:
    """With tied embeddings over several stages the last stage holds a copy of the embedding, as its output layer."""
    module = part.module
    if part.shape.tied_embeddings and module.post_process and not module.pre_process:
        weight: Tensor = module.output_layer.weight
        return weight
    return None
