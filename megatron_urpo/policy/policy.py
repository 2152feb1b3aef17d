"""The policy: this rank's model part with its optimizer, and the two things one does with it: a pass, and a step.

A pass runs packed micro-batches through megatron-core's pipeline schedule and hands each micro-batch's response
log-probabilities to a loss. Losses return sums that are already divided by the global count, so gradients simply add up
over micro-batches and data-parallel ranks and do not depend on the layout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from torch import Tensor

from megatron_urpo.algorithm.alignment import token_alignment
from megatron_urpo.algorithm.cost import sequence_flops
from megatron_urpo.algorithm.microbatches import plan_microbatches
from megatron_urpo.config.model import Fp8Config, ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy.export import export_weights
from megatron_urpo.policy.fp8 import NO_FP8
from megatron_urpo.policy.hf.folder import write_folder
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.policy.logprobs import token_logprobs
from megatron_urpo.policy.model import ModelPart, build_model, frozen_copy
from megatron_urpo.policy.optimizer import build_optimizer, build_scheduler, wrap_model
from megatron_urpo.policy.packing import PackedBatch, TokenSequence, pack
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.weights.rows import dtype_name

Loss = Callable[[Tensor, Tensor, PackedBatch], tuple[Tensor, dict[str, float]]]
"""(logprobs [R], entropy [R], micro-batch) -> (the loss's share of this micro-batch, sums to be added up)."""


@dataclass
class Policy:
    part: ModelPart
    parallel: Parallel
    model: Any
    optimizer: Any
    scheduler: Any
    reference: ModelPart | None = None
    """The weights the run began with, frozen; kept where the objective has a KL term."""
    temperature: float = 1.0
    """What logits are divided by: log-probabilities are those of the distribution that completions are sampled from."""

    @property
    def alignment(self) -> int:
        """What the number of a micro-batch's tokens must be a multiple of."""
        config = self.part.config
        recipe = config.fp8_recipe if config.fp8 else None
        return token_alignment(recipe, self.parallel.tensor, config.sequence_parallel)

    def micro_batches(
        self, sequences: Sequence[TokenSequence], max_tokens: int, names: Sequence[str]
    ) -> list[PackedBatch]:
        """This rank's share of `sequences`, packed into equally many micro-batches on every data-parallel rank.

        `sequences` are the same on every rank. No micro-batch is above `max_tokens`, its padding included. `names` are
        the values that are packed. Raises ValueError for a sequence that is too long.
        """
        align, shape = self.alignment, self.part.shape
        flops = partial(
            sequence_flops,
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.active_ffn_size,
            num_heads=shape.num_heads,
            num_query_groups=shape.num_query_groups,
            head_dim=shape.head_dim,
            vocab_size=shape.vocab_size,
        )
        plan = plan_microbatches(
            [sequence.num_input_tokens for sequence in sequences],
            [flops(sequence.num_input_tokens, sequence.num_targets) for sequence in sequences],
            max_tokens=max_tokens // align * align,
            num_ranks=self.parallel.data,
        )
        share = plan[self.parallel.data_rank]
        return [pack([sequences[index] for index in indices], align, self.parallel.device, names) for indices in share]

    def forward_backward(self, batches: Sequence[PackedBatch], loss: Loss) -> dict[str, float]:
        """Accumulates the gradients of `loss` over this rank's `batches`; returns this rank's sums.

        Call it with equally many batches on every data-parallel rank. The sums are empty on all ranks but one for each
        data-parallel rank, so that adding them up over all ranks counts each token once.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for part in self._run(self.model, batches, partial(self._loss_step, loss), forward_only=False):
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums if self.parallel.tensor_rank == 0 else {}

    @torch.no_grad()
    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities [R] of each batch's targets; on the last pipeline stage, elsewhere an empty list."""
        return self._run(self.model, batches, partial(self._logprob_step, self.part), forward_only=True)

    @torch.no_grad()
    def reference_logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """The same, by the reference."""
        assert self.reference is not None, "build_policy(with_reference=True) keeps one"
        finish = partial(self._logprob_step, self.reference)
        return self._run(self.reference.module, batches, finish, forward_only=True)

    def step(self) -> float:
        """One optimizer update from the accumulated gradients. Returns their global norm before clipping.

        Where that norm is not finite nothing is updated: AdamW would carry the damage into every later step.
        """
        grad_norm = self.grad_norm()
        if math.isfinite(grad_norm):
            self.optimizer.step()
        self.scheduler.step(increment=1)
        return grad_norm

    def grad_norm(self) -> float:
        """Global norm of the accumulated gradients."""
        self.optimizer.prepare_grads()
        return float(self.optimizer.get_grad_norm())

    def skip_updates(self, count: int) -> None:
        """Advances the learning-rate schedule by `count` updates that do not happen."""
        if count:
            self.scheduler.step(increment=count)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face-named, unsharded weights; on rank 0. Collective: every rank must iterate to the end."""
        return export_weights(self.part, self.parallel)

    def write_model(self, target: Path, source: Path) -> None:
        """Writes a Hugging Face folder with config and tokenizer from `source`. Collective; rank 0 writes."""
        weights = self.export()
        if self.parallel.rank == 0:
            dtype = dtype_name(self.part.config.params_dtype)
            specs = {name: (dtype, size) for name, size in hf_shapes(self.part.shape).items()}
            write_folder(target, source, specs, weights)
        for _ in weights:
            pass

    def _run(
        self, model: Any, batches: Sequence[PackedBatch], finish: Callable[..., Any], forward_only: bool
    ) -> list[Any]:
        def forward_step(batches: Iterator[PackedBatch], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(batches)
            output = model(batch.tokens_1T, batch.positions_1T, None, packed_seq_params=batch.packed)
            return output, partial(finish, batch)

        results: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens_1T.shape[1] for batch in batches),
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return results

    def _response_logprobs(self, part: ModelPart, batch: PackedBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor]:
        group = None
        if self.parallel.tensor > 1:
            group = parallel_state.get_tensor_model_parallel_group()
            # Each rank's gradient of the hidden states covers its rows of the vocabulary; backward adds them up.
            if part.config.sequence_parallel:
                hidden_T1H = gather_from_sequence_parallel_region(hidden_T1H)
            else:
                hidden_T1H = copy_to_tensor_model_parallel_region(hidden_T1H)
        hidden_RH = hidden_T1H[:, 0][batch.predicting_R]
        if self.temperature != 1.0:
            hidden_RH = hidden_RH / self.temperature  # logits are linear in it
        return token_logprobs(hidden_RH, part.module.output_weight, batch.targets_R, part.shape.vocab_size, group)

    def _loss_step(self, loss: Loss, batch: PackedBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        value, sums = loss(*self._response_logprobs(self.part, batch, hidden_T1H), batch)
        return value, torch.zeros((), dtype=torch.int), sums

    def _logprob_step(
        self, part: ModelPart, batch: PackedBatch, hidden_T1H: Tensor, non_loss_data: bool = True
    ) -> Tensor:
        return self._response_logprobs(part, batch, hidden_T1H)[0]


def build_policy(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    layout: ParallelConfig,
    parallel: Parallel,
    num_steps: int,
    updates_per_step: int,
    with_reference: bool = False,
    fp8: Fp8Config = NO_FP8,
    temperature: float = 1.0,
) -> Policy:
    """The policy at step 0. Raises ConfigError where the model or the layout cannot be built."""
    part = build_model(model, layout, fp8, parallel)
    reference = frozen_copy(part, model, layout, fp8, parallel) if with_reference else None
    wrapped = wrap_model(part, layout.distributed_optimizer)
    wrapped.broadcast_params()
    optimizer_state = build_optimizer(wrapped, optimizer, layout.distributed_optimizer)
    scheduler = build_scheduler(optimizer_state, optimizer, num_steps, updates_per_step)
    return Policy(part, parallel, wrapped, optimizer_state, scheduler, reference, temperature)
